//! What to do with a page that a unit has a fault on.
//!
//! | hint | read | write |
//! |---|---|---|
//! | the page bounces | in place | in place |
//! | it comes back too soon (`gone`), and no hint says where it is to be | in place | in place |
//! | read mostly | copy | migrate |
//! | prefers this device | migrate | migrate |
//! | prefers another place, or accessed by this device | in place | in place |
//! | none | in place, read-only; a device that copies what it reads: copy | migrate |
//!
//! In place means: the entry names the system page itself. The entry is read-only where a write would migrate the page, so
//! that the device's first write is a fault.
//!
//! A copy is a frame that holds the same bytes as the system's page, which is write-protected meanwhile: everybody reads,
//! and a write drops the copies first. For this device the system's pages are as near as its own memory, so that what is
//! not said to be read mostly stays where it is. A device for which that is not so copies what it reads
//! ([`Builder::copy_reads`](crate::Builder::copy_reads)).

use hmm_core::hints::{Hint, Preferred};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Access it where the CPU does.
    InPlace,
    /// As `InPlace`, and writes, too: it would be on the device if there were room.
    Stay,
    /// Bring it to the device.
    Migrate,
    /// Make a copy on the device.
    Copy,
}

/// Whether what is to migrate may stay where it is if there is no room for it: nobody has said that it has to come, and the
/// device reaches system memory as well as its own.
pub(crate) fn may_stay(hint: Hint, copies_reads: bool) -> bool {
    hint.preferred.is_none() && !hint.read_mostly && !copies_reads
}

/// What the hints say.
pub(crate) fn decide(hint: Hint, device: u8, write: bool, copies_reads: bool) -> Action {
    if hint.read_mostly {
        return if write { Action::Migrate } else { Action::Copy };
    }
    match hint.preferred {
        Some(Preferred::Device(other)) if other == device => Action::Migrate,
        Some(Preferred::Device(_) | Preferred::System) => Action::InPlace,
        None if hint.is_accessed_by(device) => Action::InPlace,
        None if write => Action::Migrate,
        None if copies_reads => Action::Copy,
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
        let both = |hint| (decide(hint, 1, false, false), decide(hint, 1, true, false));
        assert_eq!(both(none), (Action::InPlace, Action::Migrate));
        assert_eq!(both(prefers(Preferred::Device(1))), (Action::Migrate, Action::Migrate));
        assert_eq!(both(prefers(Preferred::Device(0))), (Action::InPlace, Action::InPlace));
        assert_eq!(both(prefers(Preferred::System)), (Action::InPlace, Action::InPlace));
        assert_eq!(both(Hint { read_mostly: true, ..none }), (Action::Copy, Action::Migrate));
        assert_eq!(both(Hint { accessed_by: 2, ..none }), (Action::InPlace, Action::InPlace));
        assert_eq!(both(Hint { accessed_by: 1, ..none }), (Action::InPlace, Action::Migrate));
        assert_eq!(decide(none, 1, false, true), Action::Copy);
        assert_eq!(decide(none, 1, true, true), Action::Migrate);
        assert_eq!(decide(prefers(Preferred::System), 1, false, true), Action::InPlace);
    }
}
