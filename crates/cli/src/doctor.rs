//! `hmm doctor`: what this kernel and this user can do, what is lost, and how to get it back.

use std::process::ExitCode;

use hmm_uapi::probe::{Fact, Status, probe};
use serde::Serialize;

use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table};

/// The full userfaultfd, which `hmm run` cannot do without.
const FULL: &str = "userfaultfd";
/// The restricted one, which is enough for the library.
const USER_MODE: &str = "userfaultfd, user mode only";

/// Say what this machine and this user can do, and what to change for more.
///
/// Exit status: 0 if `hmm run` works here, 1 if not.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What the facts come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Diagnosis {
    /// `hmm run` works.
    run: bool,
    /// `hmm demo` and the library work.
    library: bool,
}

impl Diagnosis {
    fn of(facts: &[Fact]) -> Self {
        let has = |name| facts.iter().any(|fact| fact.name == name && fact.status == Status::Ok);
        let rest = facts
            .iter()
            .all(|fact| fact.status != Status::Missing || fact.name == FULL || fact.name == USER_MODE);
        // A system call of an unmodified program must not fail because a page is away.
        Self { run: rest && has(FULL), library: rest && (has(FULL) || has(USER_MODE)) }
    }
}

/// Prints the diagnosis.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let facts = probe();
    let diagnosis = Diagnosis::of(&facts);
    if args.json {
        let json = serde_json::to_string_pretty(&Json::of(&facts, diagnosis)).map_err(Failure::of_hmm)?;
        output::print(format_args!("{json}\n"));
    } else {
        output::print(format_args!("{}", report(&facts, diagnosis)));
    }
    Ok(if diagnosis.run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fails, with what is missing and how to get it, where `hmm run` does not work.
pub(crate) fn require_run() -> Result<(), Failure> {
    refuse(&probe())
}

fn refuse(facts: &[Fact]) -> Result<(), Failure> {
    if Diagnosis::of(facts).run {
        return Ok(());
    }
    let mut message = "this machine, or this user, lacks what hmm needs to run a program:".to_owned();
    for fact in facts.iter().filter(|fact| stands_in_the_way(fact)) {
        message += &format!("\n  {}: {}", fact.name, fact.detail);
        if let Some(remedy) = &fact.remedy {
            message += &format!("\n    to change it: {remedy}");
        }
    }
    message += "\n  `hmm doctor` tells more";
    Err(Failure::of_hmm(message))
}

fn stands_in_the_way(fact: &Fact) -> bool {
    match fact.status {
        Status::Missing => fact.name != USER_MODE,
        Status::Degraded => fact.name == FULL,
        Status::Ok => false,
    }
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Degraded => "degraded",
        Status::Missing => "missing",
    }
}

fn report(facts: &[Fact], diagnosis: Diagnosis) -> String {
    let mut table = Table::new([Align::Left, Align::Left, Align::Left]);
    for fact in facts {
        table.row([fact.name.to_owned(), word(fact.status).to_owned(), fact.detail.clone()]);
        if let Some(remedy) = &fact.remedy {
            table.row([String::new(), String::new(), format!("to change it: {remedy}")]);
        }
    }
    let limits = facts.iter().filter(|fact| fact.status == Status::Degraded).count();
    let works = |works: bool| match (works, limits) {
        (false, _) => "does not work here".to_owned(),
        (true, 0) => "works".to_owned(),
        (true, _) => "works, with less where it says degraded".to_owned(),
    };
    let mut answers = Table::new([Align::Left, Align::Left]);
    answers.row(["hmm run".to_owned(), works(diagnosis.run)]);
    answers.row(["hmm demo, the library".to_owned(), works(diagnosis.library)]);
    format!("{table}\n{answers}")
}

#[derive(Debug, Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    diagnosis: Diagnosis,
    facts: Vec<JsonFact<'a>>,
}

#[derive(Debug, Serialize)]
struct JsonFact<'a> {
    name: &'a str,
    status: &'static str,
    detail: &'a str,
    remedy: Option<&'a str>,
}

impl<'a> Json<'a> {
    fn of(facts: &'a [Fact], diagnosis: Diagnosis) -> Self {
        let facts = facts.iter().map(|fact| JsonFact {
            name: fact.name,
            status: word(fact.status),
            detail: &fact.detail,
            remedy: fact.remedy.as_deref(),
        });
        Self { diagnosis, facts: facts.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(name: &'static str, status: Status) -> Fact {
        let remedy = (status != Status::Ok).then(|| format!("mend {name}"));
        Fact { name, status, detail: format!("detail of {name}"), remedy }
    }

    fn facts(full: Status, user: Status, other: Status) -> Vec<Fact> {
        vec![fact(FULL, full), fact(USER_MODE, user), fact("other", other)]
    }

    #[test]
    fn the_names_are_those_that_the_probe_uses() {
        let facts = probe();
        for name in [FULL, USER_MODE] {
            assert!(facts.iter().any(|fact| fact.name == name), "{name}");
        }
    }

    #[test]
    fn a_run_needs_the_full_userfaultfd_and_the_library_any() {
        use Status::{Degraded, Missing, Ok};
        for (full, user, other, run, library) in [
            (Ok, Ok, Ok, true, true),
            (Ok, Ok, Degraded, true, true),
            (Ok, Missing, Ok, true, true),
            (Degraded, Ok, Ok, false, true),
            (Missing, Ok, Ok, false, true),
            (Missing, Missing, Ok, false, false),
            (Ok, Ok, Missing, false, false),
        ] {
            let diagnosis = Diagnosis::of(&facts(full, user, other));
            assert_eq!(diagnosis, Diagnosis { run, library }, "{full:?} {user:?} {other:?}");
        }
    }

    #[test]
    fn a_refusal_names_what_is_missing_and_the_remedy() {
        refuse(&facts(Status::Ok, Status::Ok, Status::Degraded)).unwrap();
        let failure = refuse(&facts(Status::Degraded, Status::Missing, Status::Ok)).expect_err("refused");
        assert_eq!(failure.code(), 125);
        let text = format!("{failure:?}");
        assert!(text.contains("detail of userfaultfd") && text.contains("mend userfaultfd"), "{text}");
        assert!(!text.contains("user mode only") && !text.contains("other"), "{text}");
    }

    #[test]
    fn the_report_has_every_fact_with_its_remedy() {
        let facts = facts(Status::Degraded, Status::Ok, Status::Missing);
        let text = report(&facts, Diagnosis::of(&facts));
        for part in
            ["userfaultfd", "degraded", "detail of other", "to change it: mend other", "does not work here"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
