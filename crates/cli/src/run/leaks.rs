//! Leak checks of sanitizers: off in programs under hmm, unless somebody has said whether they are wanted.
//!
//! At the end of a program that has a sanitizer in it, all of its threads are stopped, hmm's as well, and then its memory is
//! read for pointers. Who reads a page that is away waits for a thread that is stopped: for ever.

use std::ffi::OsString;

/// What leak checks read, and what sanitizers do, with the same options.
pub(super) const LEAKS_ENV: &str = "LSAN_OPTIONS";
pub(super) const OTHERS_ENV: &str = "ASAN_OPTIONS";

/// The value of [`LEAKS_ENV`]; `None`: it stays as it is.
pub(super) fn without_checks(leaks: Option<OsString>, others: Option<OsString>) -> Option<OsString> {
    const OPTION: &str = "detect_leaks";
    let [leaks, others] = [leaks, others].map(Option::unwrap_or_default);
    let is_said = [&leaks, &others].into_iter().any(|value| value.to_string_lossy().contains(OPTION));
    (!is_said).then(|| {
        let mut value = OsString::from(format!("{OPTION}=0"));
        if !leaks.is_empty() {
            value.push(":");
            value.push(leaks);
        }
        value
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_said_stays() {
        let value = |leaks: Option<&str>, others: Option<&str>| {
            without_checks(leaks.map(OsString::from), others.map(OsString::from))
        };
        assert_eq!(value(None, None), Some("detect_leaks=0".into()));
        assert_eq!(
            value(Some("verbosity=1"), Some("abort_on_error=1")),
            Some("detect_leaks=0:verbosity=1".into())
        );
        assert_eq!(value(Some("detect_leaks=1"), None), None);
        assert_eq!(value(None, Some("verbosity=1:detect_leaks=1")), None);
    }
}
