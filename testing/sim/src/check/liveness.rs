//! Nobody is left waiting.

use crate::machine::Machine;

pub(crate) fn check(machine: &Machine) {
    assert!(machine.threads.is_empty(), "threads are left waiting: {:?}", machine.threads);
    assert!(machine.events.is_empty() && !machine.events.is_changing(), "events are left unread");
    assert!(machine.dropping.is_empty(), "a discard was never finished");
}
