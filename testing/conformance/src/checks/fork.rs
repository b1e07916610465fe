//! A child of the program has none of what is away, and does not take it for zeroes.

use super::{SEED, with_pages_on_device};
use crate::child::{end_by_signals, fork};
use crate::ground::Make;
use crate::watchdog::Watched;

/// A child that touches a page which is on the device is ended by a signal; nothing happens to the parent.
///
/// # Panics
/// If the child reads anything but the page's bytes, or the parent does.
pub fn a_child_never_reads_wrong_bytes(make: Make, watched: &Watched) {
    let (ground, map) = with_pages_on_device(make, watched, 20);
    map.expect([0], SEED, "touched");
    let want = map.read(0, 9);
    // On the device, and at home.
    for page in [10, 0] {
        // SAFETY: the child reads one word, and ends by a system call.
        let child = unsafe { fork() };
        if child == 0 {
            end_by_signals();
            let is_right = map.read(page, 9) == if page == 0 { want } else { u64::MAX };
            // SAFETY: ends the child.
            unsafe { libc::_exit(if is_right { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: our child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        let is_ended =
            libc::WIFSIGNALED(status) && [libc::SIGSEGV, libc::SIGBUS].contains(&libc::WTERMSIG(status));
        assert!(is_ended || (page == 0 && status == 0), "page {page}: the child ended with {status:#x}");
    }
    map.expect(0..20, SEED, "of the parent");
    assert!(!ground.comes_home() || ground.driver.to_device(map.pages()) == 20, "pages go as before");
    map.expect(0..20, SEED, "of the parent");
    drop(map);
    ground.finish();
}
