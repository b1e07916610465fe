//! `PROCMAP_QUERY`: one mapping by one ioctl.

use linux_raw_sys::general::{procmap_query, procmap_query_flags as flags};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

use super::{Perms, Vma, VmaKind, kind};
use crate::ioc;

const PROCMAP_QUERY: Opcode = opcode::read_write::<procmap_query>(b'f', 17);

/// Room for names: the longest that is not a file's (`[anon:` and 80 bytes) fits. A longer one is a path.
const NAME_BYTES: u32 = 128;

pub(super) fn next_vma(fd: impl AsFd, addr: u64) -> Result<Option<Vma>, Errno> {
    let mut name = [0; NAME_BYTES as usize];
    let mut arg = request(addr);
    arg.vma_name_addr = name.as_mut_ptr().expose_provenance() as u64;
    arg.vma_name_size = NAME_BYTES;
    // SAFETY:
    // 1. the opcode takes a `procmap_query`.
    // 2. it writes a name to the array whose address and size it was given.
    match unsafe { ioc::call(&fd, PROCMAP_QUERY, &mut arg) } {
        Ok(_) => {
            // Its length counts the terminating zero; there is none when there is no name.
            let len = arg.vma_name_size.saturating_sub(1).min(NAME_BYTES) as usize;
            Ok(Some(vma(&arg, kind(arg.inode, &name[..len]))))
        }
        Err(Errno::NAMETOOLONG) => next_file(fd, addr),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Asks again, without the name, which was too long to be anything but a path.
fn next_file(fd: impl AsFd, addr: u64) -> Result<Option<Vma>, Errno> {
    let mut arg = request(addr);
    // SAFETY: the opcode takes a `procmap_query`, and touches no other memory without the addresses of buffers.
    match unsafe { ioc::call(fd, PROCMAP_QUERY, &mut arg) } {
        Ok(_) => Ok(Some(vma(&arg, VmaKind::File))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

const fn request(addr: u64) -> procmap_query {
    procmap_query {
        size: size_of::<procmap_query>() as u64,
        query_flags: flags::PROCMAP_QUERY_COVERING_OR_NEXT_VMA as u64,
        query_addr: addr,
        vma_start: 0,
        vma_end: 0,
        vma_flags: 0,
        vma_page_size: 0,
        vma_offset: 0,
        inode: 0,
        dev_major: 0,
        dev_minor: 0,
        vma_name_size: 0,
        build_id_size: 0,
        vma_name_addr: 0,
        build_id_addr: 0,
    }
}

fn vma(answer: &procmap_query, kind: VmaKind) -> Vma {
    let perms = [
        (flags::PROCMAP_QUERY_VMA_READABLE, Perms::READ),
        (flags::PROCMAP_QUERY_VMA_WRITABLE, Perms::WRITE),
        (flags::PROCMAP_QUERY_VMA_EXECUTABLE, Perms::EXEC),
        (flags::PROCMAP_QUERY_VMA_SHARED, Perms::SHARED),
    ]
    .into_iter()
    .filter(|(flag, _)| answer.vma_flags & *flag as u64 != 0)
    .fold(Perms::empty(), |perms, (_, perm)| perms | perm);
    Vma {
        start: answer.vma_start,
        end: answer.vma_end,
        perms,
        offset: answer.vma_offset,
        inode: answer.inode,
        dev: (answer.dev_major, answer.dev_minor),
        page_size: answer.vma_page_size,
        kind,
    }
}
