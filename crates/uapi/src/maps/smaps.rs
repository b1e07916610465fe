//! What only the text of `/proc/self/smaps` says of mappings. To make it the kernel looks at every page.

use std::mem::MaybeUninit;

use rustix::io::Errno;

use super::text::{Line, READ_BYTES, number};
use crate::procfs::Procfs;
use crate::range::AddrRange;

/// Gives the mappings of this process that are zeroes in the child of a fork (`MADV_WIPEONFORK`).
///
/// # Errors
/// What opening and reading say; none is expected where procfs is mounted.
pub fn for_each_wiped_on_fork(procfs: &Procfs, each: &mut dyn FnMut(AddrRange)) -> Result<(), Errno> {
    let fd = procfs.open_file(c"self/smaps")?;
    let mut line = Line::new();
    let mut range = AddrRange { start: 0, end: 0 };
    let mut buffer = [MaybeUninit::uninit(); READ_BYTES];
    loop {
        let text = match rustix::io::read(&fd, &mut buffer) {
            Ok(([], _)) => return Ok(()),
            Ok((text, _)) => text,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        for byte in text {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            let line = line.take();
            if let Some(flags) = line.strip_prefix(b"VmFlags:") {
                // The last line of a mapping.
                if flags.split(|byte| *byte == b' ').any(|flag| flag == b"wf") {
                    each(range);
                }
            } else if let Some(next) = addresses(line) {
                range = next;
            }
        }
    }
}

/// The addresses that the first line of a mapping begins with.
fn addresses(line: &[u8]) -> Option<AddrRange> {
    let (start, rest) = number(line, 16, b'-')?;
    let (end, _) = number(rest, 16, b' ')?;
    Some(AddrRange { start, end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{Advice, Mapping};

    #[test]
    fn the_mapping_that_is_wiped_is_found() {
        let mapping = Mapping::anonymous(3 * 4096).unwrap();
        mapping.advise(4096, 4096, Advice::WipeOnFork).unwrap();
        let mut found = Vec::new();
        for_each_wiped_on_fork(&Procfs::open().unwrap(), &mut |range| found.push(range)).unwrap();
        let start = mapping.range().start + 4096;
        assert!(found.contains(&AddrRange { start, end: start + 4096 }), "{found:?}");
        let behind = start + 4096;
        assert!(found.iter().all(|range| !(range.start..range.end).contains(&behind)), "{found:?}");
    }
}
