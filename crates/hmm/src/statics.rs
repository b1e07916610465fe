//! Static data: the variables of the program and of its libraries, hmm's own among them.

use hmm_uapi::AddrRange;

use crate::loaded;

/// Whether a part of the range, which consists of pages, is of a file that the program was loaded from: what its header asks
/// for, and so also what lies behind the file's bytes because it is zero in the beginning, be it ever so long.
pub(crate) fn any_in(range: AddrRange) -> bool {
    let meets = |part: AddrRange| part.start < range.end && range.start < part.end;
    loaded::any(|file| file.parts(libc::PT_LOAD).any(|(part, _)| meets(part)))
}
