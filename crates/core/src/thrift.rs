//! How much a fault, or a read-ahead, asks for, and how a fault that finds little memory or none comes to ask for less.

/// What is to be brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// What its stream says, and nothing if there is memory for much less.
    Much,
    /// As much of it as there is memory for.
    Little,
    /// Its page.
    Alone,
    /// The same, if there is memory for a copy of it besides.
    Copied,
}

/// Steps of reclaim that a fault takes for its stream's sake, before it is served with what there is.
const SCARCE_STEPS: u32 = 3;
/// How often a fault finds no memory until it asks for its page alone: what is lent for the others would be missing for that.
const MAX_NEEDS: u32 = 3;

/// What one fault has found so far.
#[derive(Debug)]
pub(crate) struct Thrift {
    patience: u32,
    nr_needs: u32,
    copies: bool,
}

impl Thrift {
    pub(crate) const fn new() -> Self {
        Self { patience: SCARCE_STEPS, nr_needs: 0, copies: false }
    }

    pub(crate) const fn wish(&self) -> Wish {
        match (self.nr_needs, self.patience) {
            _ if self.copies => Wish::Copied,
            (MAX_NEEDS.., _) => Wish::Alone,
            (_, 0) => Wish::Little,
            _ => Wish::Much,
        }
    }

    /// There was memory for little; a step of reclaim has freed some, or none.
    pub(crate) fn found_little(&mut self, progress: bool) {
        self.patience = if progress { self.patience.saturating_sub(1) } else { 0 };
    }

    /// There was none. Says whether that is so for the first time. The page was brought for nothing if there was none for its
    /// copy (`second`): of a read-only mapping each page takes two, one to be copied from.
    pub(crate) fn found_none(&mut self, second: bool) -> bool {
        self.copies |= second;
        self.nr_needs += 1;
        self.nr_needs == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_little_asks_for_less() {
        let mut thrift = Thrift::new();
        for _ in 0..SCARCE_STEPS {
            assert_eq!(thrift.wish(), Wish::Much);
            thrift.found_little(true);
        }
        assert_eq!(thrift.wish(), Wish::Little);
        let firsts: Vec<_> = (0..MAX_NEEDS).map(|_| thrift.found_none(false)).collect();
        assert_eq!((firsts, thrift.wish()), (vec![true, false, false], Wish::Alone));
        let mut hopeless = Thrift::new();
        hopeless.found_little(false);
        assert_eq!(hopeless.wish(), Wish::Little);
        assert!(hopeless.found_none(true));
        assert_eq!(hopeless.wish(), Wish::Copied);
    }
}
