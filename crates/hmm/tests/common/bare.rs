//! A runtime without threads: a test decides who serves.

use hmm::control::OnFull;
use hmm::core::ledger::Ledger;
use hmm::core::stats::Stats;
use hmm::core::{Config, Engine};
use hmm::device::Ram;
use hmm::mm::{Books, Mm};
use hmm::open::open_files;
use hmm::runtime::{Policy, Runtime};
use hmm::uapi::uffd::{Access, Features};

const BUDGET_PAGES: u64 = 8192;

#[derive(Debug)]
struct Accounts {
    ledger: Ledger,
    stats: Stats,
}

impl Books for Accounts {
    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}

#[derive(Debug)]
struct Grow;

impl Policy for Grow {
    fn on_full(&self) -> OnFull {
        OnFull::Grow
    }

    fn end(&self) {
        std::process::abort();
    }
}

/// It has 32 MiB, and a device of 4 MiB.
pub(crate) fn runtime() -> Runtime {
    let config = Config::for_budget(BUDGET_PAGES);
    let books = Accounts { ledger: Ledger::new(BUDGET_PAGES), stats: Stats::default() };
    let files = open_files(Access::Full, Features::empty()).expect("userfaultfd can be had");
    let mm = Mm::new(files, config.nr_bays, Box::new(books)).expect("staging");
    let engine = Engine::new(mm, vec![std::sync::Arc::new(Ram::new(1024))], config);
    Runtime::new(engine, Box::new(Grow)).expect("eventfds")
}
