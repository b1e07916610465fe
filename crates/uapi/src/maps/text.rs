//! The text of `/proc/self/maps`, read in pieces: a line is
//! `start-end perms offset major:minor inode    name`, all numbers but the inode hexadecimal.

use std::mem::MaybeUninit;

use rustix::fd::AsFd;
use rustix::io::Errno;

use super::{Perms, Vma, kind};
use crate::PAGE_BYTES;

/// Bytes of a line that are kept: all but the rest of long names, which say nothing that matters here.
const LINE_BYTES: usize = 256;
/// Bytes of text read at once.
pub(super) const READ_BYTES: usize = 2048;
/// Where the kernel's half of the address space begins.
const KERNEL_HALF: u64 = 1 << 63;

pub(super) fn next_vma(fd: impl AsFd, addr: u64) -> Result<Option<Vma>, Errno> {
    let mut line = Line::new();
    let mut buffer = [MaybeUninit::uninit(); READ_BYTES];
    let mut offset = 0;
    loop {
        let text = match rustix::io::pread(&fd, &mut buffer, offset) {
            Ok(([], _)) => return Ok(None),
            Ok((text, _)) => text,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        offset += text.len() as u64;
        for byte in text {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            let vma = parse(line.take()).filter(|vma| vma.end > addr && vma.start < KERNEL_HALF);
            if vma.is_some() {
                return Ok(vma);
            }
        }
    }
}

/// The beginning of a line.
pub(super) struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; LINE_BYTES], len: 0 }
    }

    pub(super) fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    pub(super) fn take(&mut self) -> &[u8] {
        let len = std::mem::take(&mut self.len);
        self.bytes.get(..len).unwrap_or_default()
    }
}

fn parse(line: &[u8]) -> Option<Vma> {
    let (start, rest) = number(line, 16, b'-')?;
    let (end, rest) = number(rest, 16, b' ')?;
    let (perms, rest) = rest.split_at_checked(5)?;
    let (offset, rest) = number(rest, 16, b' ')?;
    let (major, rest) = number(rest, 16, b':')?;
    let (minor, rest) = number(rest, 16, b' ')?;
    let (inode, name) = number(rest, 10, b' ')?;
    Some(Vma {
        start,
        end,
        perms: parse_perms(perms),
        offset,
        inode,
        dev: (u32::try_from(major).ok()?, u32::try_from(minor).ok()?),
        page_size: PAGE_BYTES,
        kind: kind(inode, name.trim_ascii_start()),
    })
}

fn parse_perms(text: &[u8]) -> Perms {
    text.iter().fold(Perms::empty(), |perms, letter| {
        perms
            | match letter {
                b'r' => Perms::READ,
                b'w' => Perms::WRITE,
                b'x' => Perms::EXEC,
                b's' => Perms::SHARED,
                _ => Perms::empty(),
            }
    })
}

/// Reads a number and the byte behind it.
pub(super) fn number(text: &[u8], radix: u32, behind: u8) -> Option<(u64, &[u8])> {
    let digits = text.iter().position(|byte| *byte == behind)?;
    let value = text[..digits].iter().try_fold(0u64, |value, byte| {
        let digit = char::from(*byte).to_digit(radix)?;
        value.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))
    })?;
    Some((value, &text[digits + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::VmaKind;

    fn kind_of(line: &str) -> VmaKind {
        parse(line.as_bytes()).unwrap().kind
    }

    #[test]
    fn parses_a_file() {
        let vma =
            parse(b"7f10a000-7f10c000 r-xs 0001f000 fe:03 1234567    /usr/lib/a b.so (deleted)").unwrap();
        assert_eq!(
            vma,
            Vma {
                start: 0x7f10_a000,
                end: 0x7f10_c000,
                perms: Perms::READ | Perms::EXEC | Perms::SHARED,
                offset: 0x1f000,
                inode: 1_234_567,
                dev: (0xfe, 3),
                page_size: 4096,
                kind: VmaKind::File,
            }
        );
    }

    #[test]
    fn tells_kinds_by_name_only_without_an_inode() {
        let anonymous = "1000-2000 rw-p 00000000 00:00 0 ";
        assert_eq!(kind_of(anonymous), VmaKind::Anonymous);
        assert_eq!(kind_of(&format!("{anonymous}    [heap]")), VmaKind::Heap);
        assert_eq!(kind_of(&format!("{anonymous}    [stack]")), VmaKind::Stack);
        assert_eq!(kind_of(&format!("{anonymous}    [vdso]")), VmaKind::Special);
        assert_eq!(kind_of(&format!("{anonymous}    [anon:glibc: malloc]")), VmaKind::Anonymous);
        assert_eq!(kind_of("1000-2000 rw-p 00000000 00:05 7 [heap]"), VmaKind::File);
        assert_eq!(kind_of("1000-2000 rw-p 00000000 00:05 7 /memfd:x (deleted)"), VmaKind::File);
        assert_eq!(kind_of("1000-2000 rw-p 00000000 00:05 7 /dev/zero"), VmaKind::File);
    }

    #[test]
    fn refuses_nonsense() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1000-2000"), None);
        assert_eq!(parse(b"1000-zz rw-p 0 00:00 0 "), None);
        assert_eq!(parse(b"11112222333344445-2000 rw-p 00000000 00:00 0 "), None);
    }
}
