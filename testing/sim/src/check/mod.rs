//! What must hold whenever no call of the engine is under way. Each checker looks at the world from its own side and
//! panics at what must not be.

pub(crate) mod budget;
mod content;
mod homes;
mod liveness;
mod mirror;
mod peek;

use hmm_core::Engine;

use crate::driver;
use crate::kernel::SimKernel;
use crate::shared::Shared;

/// All but the bytes.
pub(crate) fn all(shared: &Shared, engine: &Engine<SimKernel>) {
    let machine = shared.lock();
    if machine.gone {
        return;
    }
    driver::check(shared, &machine, engine);
    liveness::check(&machine);
    let census = homes::census(shared, &machine, engine);
    budget::check(shared, &machine, engine, &census);
}

/// The bytes of every page, wherever they are.
pub(crate) fn bytes(shared: &Shared, engine: &Engine<SimKernel>) {
    let machine = shared.lock();
    if !machine.gone {
        content::check(&machine, engine);
    }
}

/// The bytes of every page that is away, as the engine gives them to a child of a fork.
pub(crate) fn peek(shared: &Shared, engine: &Engine<SimKernel>) {
    if !shared.lock().gone {
        peek::check(shared, engine);
    }
}

/// What a driver sees.
pub(crate) fn mirror(shared: &Shared, engine: &Engine<SimKernel>) {
    if shared.lock().gone {
        return;
    }
    mirror::look(shared, engine);
    mirror::fault(shared, engine);
}

/// All pages were given up: what is left is memory without meaning.
pub(crate) fn nothing_kept(shared: &Shared, engine: &Engine<SimKernel>) {
    shared.drivers().iter().for_each(|driver| driver.let_go(shared, usize::MAX));
    let machine = shared.lock();
    homes::check_nothing_kept(&machine, engine);
    let (charged, stock) = (shared.ledger.charged(), engine.nr_stock());
    assert_eq!(charged, stock, "charged, and in stock, when all pages were given up");
}
