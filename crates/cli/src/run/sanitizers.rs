//! Options for the sanitizers that a program may have in it, unless somebody has said what is wanted.
//!
//! - The runtime of a sanitizer that is a library refuses to begin when another comes before it, and the agent has to. It works all
//!   the same.
//! - Leak checks are off. At the end of the program all of its threads are stopped, hmm's as well, and then its memory is read for
//!   pointers. Who reads a page that is away waits for a thread that is stopped: for ever.

use std::ffi::{OsStr, OsString};

/// What a sanitizer reads its options from; the second are those of leak checks, and go before the first.
const NAMES: [&str; 2] = ["ASAN_OPTIONS", "LSAN_OPTIONS"];
const ORDER: &str = "verify_asan_link_order";
const LEAKS: &str = "detect_leaks";

/// Variables that change, and their values, where these are those that there are.
pub(super) fn options(value_of: &dyn Fn(&str) -> Option<OsString>) -> Vec<(&'static str, OsString)> {
    let [asan, leaks] = NAMES.map(|name| value_of(name).unwrap_or_default());
    let mut changed = Vec::new();
    if !has(&asan, ORDER) {
        changed.push((NAMES[0], with(ORDER, &asan)));
    }
    if !has(&asan, LEAKS) && !has(&leaks, LEAKS) {
        changed.push((NAMES[1], with(LEAKS, &leaks)));
    }
    changed
}

fn has(options: &OsStr, name: &str) -> bool {
    options.to_string_lossy().contains(name)
}

/// The options with that one off.
fn with(name: &str, options: &OsStr) -> OsString {
    let mut value = OsString::from(format!("{name}=0"));
    if !options.is_empty() {
        value.push(":");
        value.push(options);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_said_stays() {
        let changed = |asan: Option<&str>, leaks: Option<&str>| {
            let value_of = |name: &str| if name == NAMES[0] { asan } else { leaks }.map(OsString::from);
            options(&value_of).into_iter().map(|(name, value)| format!("{name}={}", value.display()))
        };
        assert!(
            changed(None, None).eq(["ASAN_OPTIONS=verify_asan_link_order=0", "LSAN_OPTIONS=detect_leaks=0"])
        );
        assert!(
            changed(Some("a=1"), Some("b=2"))
                .eq(["ASAN_OPTIONS=verify_asan_link_order=0:a=1", "LSAN_OPTIONS=detect_leaks=0:b=2"])
        );
        assert!(
            changed(Some("detect_leaks=1"), None)
                .eq(["ASAN_OPTIONS=verify_asan_link_order=0:detect_leaks=1"])
        );
        assert!(changed(Some("verify_asan_link_order=1"), Some("detect_leaks=1")).next().is_none());
    }
}
