//! What to do with a page that a unit has a fault on.
//!
//! | hint | read | write |
//! |---|---|---|
//! | the page bounces | in place | in place |
//! | prefers this device | migrate | migrate |
//! | prefers another place, accessed by this device, or read mostly | in place | in place |
//! | none | in place, read-only | migrate |
//!
//! In place means: the entry names the system page itself. Where only reads happen, that takes the place of a copy on the
//! device: both sides read the same bytes, nothing is copied, and a write of the CPU's needs not be noticed, because there
//! is nothing else that it would have to change. A copy would need the CPU's page to be write-protected, and a fault for
//! its first write. A device that is not part of the process, and for which its own memory is nearer, would choose that.
//! The entry is read-only, so that the device's first write is a fault, too, which migrates the page.

use hmm_core::hints::{Hint, Preferred};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Access it where the CPU does.
    InPlace,
    /// Bring it to the device.
    Migrate,
}

/// What the hints say.
pub(crate) fn decide(hint: Hint, device: u8, write: bool) -> Action {
    match hint.preferred {
        Some(Preferred::Device(other)) if other == device => Action::Migrate,
        Some(Preferred::Device(_) | Preferred::System) => Action::InPlace,
        None if hint.read_mostly || hint.is_accessed_by(device) => Action::InPlace,
        None if write => Action::Migrate,
        None => Action::InPlace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_decide() {
        let none = Hint::default();
        let prefers = |place| Hint { preferred: Some(place), ..none };
        let both = |hint| (decide(hint, 1, false), decide(hint, 1, true));
        assert_eq!(both(none), (Action::InPlace, Action::Migrate));
        assert_eq!(both(prefers(Preferred::Device(1))), (Action::Migrate, Action::Migrate));
        assert_eq!(both(prefers(Preferred::Device(0))), (Action::InPlace, Action::InPlace));
        assert_eq!(both(prefers(Preferred::System)), (Action::InPlace, Action::InPlace));
        assert_eq!(both(Hint { read_mostly: true, ..none }), (Action::InPlace, Action::InPlace));
        assert_eq!(both(Hint { accessed_by: 2, ..none }), (Action::InPlace, Action::InPlace));
        assert_eq!(both(Hint { accessed_by: 1, ..none }), (Action::InPlace, Action::Migrate));
    }
}
