//! What `hmm doctor` is told agrees with what works.

mod common;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use hmm_uapi::Userfaultfd;
    use hmm_uapi::probe::{Fact, Status, probe};
    use hmm_uapi::uffd::Access;

    use crate::common::{in_allocating_child, one_at_a_time};

    fn status(facts: &[Fact], name: &str) -> Status {
        facts.iter().find(|fact| fact.name == name).map(|fact| fact.status).expect(name)
    }

    #[test]
    fn facts_have_names_and_whatever_is_wrong_has_a_remedy() {
        let _turn = one_at_a_time();
        let facts = probe();
        let names: HashSet<_> = facts.iter().map(|fact| fact.name).collect();
        assert_eq!(names.len(), facts.len());
        for fact in &facts {
            eprintln!(
                "{:?} {}: {} {}",
                fact.status,
                fact.name,
                fact.detail,
                fact.remedy.as_deref().unwrap_or("")
            );
            assert!(!fact.detail.is_empty());
            assert_eq!(fact.status == Status::Ok, fact.remedy.is_none());
        }
        let opened = Userfaultfd::open(Access::Full).is_ok();
        assert_eq!(status(&facts, "userfaultfd") == Status::Ok, opened);
        if opened && status(&facts, "UFFDIO_MOVE") == Status::Ok {
            assert_eq!(status(&facts, "moving a page out and home"), Status::Ok);
        }
    }

    /// A user without privileges is told what to do, and still gets what needs none.
    #[test]
    fn without_privileges_it_is_degraded() {
        let _turn = one_at_a_time();
        // SAFETY: plain system calls.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("SKIPPED: only root can become somebody else");
            return;
        }
        // The child allocates: glibc keeps its allocator usable across fork.
        let child = in_allocating_child(|| {
            // SAFETY: plain system calls, in the child.
            let dropped = unsafe { libc::setresgid(65534, 65534, 65534) };
            // SAFETY: as above. A user id other than 0 gives up the capabilities.
            let dropped = dropped | unsafe { libc::setresuid(65534, 65534, 65534) };
            // SAFETY: as above. A change of user made the process not dumpable, and /proc/self root's.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
            if dropped != 0 {
                return 1;
            }
            let facts = probe();
            let expect = |name, expected| status(&facts, name) == expected;
            if Userfaultfd::open(Access::Full).is_ok() {
                return if expect("userfaultfd", Status::Ok) { 0 } else { 2 };
            }
            let told = facts
                .iter()
                .find(|fact| fact.name == "userfaultfd")
                .and_then(|fact| fact.remedy.clone())
                .is_some_and(|remedy| remedy.contains("setfacl") && remedy.contains("CAP_SYS_PTRACE"));
            let as_expected = told
                && expect("userfaultfd", Status::Degraded)
                && expect("userfaultfd, user mode only", Status::Ok)
                && expect("event of fork", Status::Degraded)
                && expect("moving a page out and home", Status::Ok);
            if as_expected { 0 } else { 3 }
        });
        assert_eq!(child.end(), Ok(0));
    }
}
