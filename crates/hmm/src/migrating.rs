//! A driver's migration in the library.
//!
//! The engine allocates in it, and what it allocates is touched and freed by threads that serve faults (I6): so from setup
//! to the end the thread's allocations are private. That is right for the driver's own, too: until the end it must not touch
//! memory that could be managed.

use std::ops::{Deref, DerefMut};

use hmm_core::driver::{Collected, Committed, Migration};

use crate::callers;
use crate::heap::Inside;
use crate::mm::Mm;

/// A [`Migration`] during which the thread's allocations are private, see [`Inside`].
#[derive(Debug)]
#[must_use = "dropping a migration that is not committed undoes it"]
pub struct Migrating<'s, Stage> {
    /// Dropped before the other.
    migration: Migration<'s, Mm, Stage>,
    inside: Inside,
}

impl<'s> Migrating<'s, Collected> {
    /// Begins one.
    pub(crate) fn begin<E>(
        setup: impl FnOnce() -> Result<Migration<'s, Mm, Collected>, E>,
    ) -> Result<Self, E> {
        let inside = callers::enter();
        Ok(Self { migration: setup()?, inside })
    }

    /// See [`Migration::pages`].
    pub fn pages(self) -> Migrating<'s, Committed> {
        Migrating { migration: self.migration.pages(), inside: self.inside }
    }
}

impl Migrating<'_, Committed> {
    /// See [`Migration::finalize`].
    pub fn finalize(self) -> usize {
        self.migration.finalize()
    }
}

impl<'s, Stage> Deref for Migrating<'s, Stage> {
    type Target = Migration<'s, Mm, Stage>;

    fn deref(&self) -> &Self::Target {
        &self.migration
    }
}

impl<Stage> DerefMut for Migrating<'_, Stage> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.migration
    }
}
