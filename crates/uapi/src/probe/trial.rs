//! The proof: a page is moved out of a throw-away mapping, and home again.

use super::Fact;
use crate::mapping::Mapping;
use crate::uffd::{Access, EnableError, Features, Modes, MoveMode, OpenError, Outcome, Userfaultfd};
use crate::{AddrRange, Errno, PAGE_BYTES, PAGE_SIZE};

/// What the page holds meanwhile.
const PATTERN: u8 = 0xA7;

/// Why the trial failed.
#[derive(Debug, thiserror::Error)]
enum TrialError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Enable(#[from] EnableError),
    #[error("no memory could be mapped or registered ({0})")]
    Memory(#[from] Errno),
    #[error("moving a page {way} failed ({errno})")]
    Move { way: &'static str, errno: Errno },
    #[error("the page came home with other bytes")]
    Bytes,
}

pub(super) fn fact() -> Fact {
    const NAME: &str = "moving a page out and home";
    match out_and_home() {
        Ok(()) => Fact::ok(NAME, "works"),
        Err(why) => {
            Fact::missing(NAME, why, "see what is missing above; if nothing is, this kernel has a fault")
        }
    }
}

fn out_and_home() -> Result<(), TrialError> {
    let uffd = Userfaultfd::open(Access::Full).or_else(|_| Userfaultfd::open(Access::UserModeOnly))?;
    uffd.enable(Features::MOVE)?;
    let program = Mapping::anonymous(PAGE_SIZE)?;
    let staging = Mapping::anonymous(PAGE_SIZE)?;
    // SAFETY: the page is inside of the mapping, which nobody else knows of.
    unsafe { program.as_ptr().write_bytes(PATTERN, PAGE_SIZE) };
    // SAFETY: nobody touches the page while it is away.
    unsafe { uffd.register(program.range(), Modes::MISSING) }?;
    // SAFETY: in this mode an access to a hole is an ordinary one.
    unsafe { uffd.register(staging.range(), Modes::WRITE_PROTECT) }?;
    move_page(&uffd, staging.range(), program.range(), "out")?;
    move_page(&uffd, program.range(), staging.range(), "home")?;
    // SAFETY: as above; the page is back, or else it was not said to be.
    let byte = unsafe { program.as_ptr().read_volatile() };
    if byte == PATTERN { Ok(()) } else { Err(TrialError::Bytes) }
}

fn move_page(
    uffd: &Userfaultfd,
    dst: AddrRange,
    src: AddrRange,
    way: &'static str,
) -> Result<(), TrialError> {
    // SAFETY: both pages are of mappings that only this trial knows of.
    match unsafe { uffd.r#move(dst.start, src.start, PAGE_BYTES, MoveMode::empty()) } {
        Outcome { stop: None, .. } => Ok(()),
        Outcome { stop: Some(errno), .. } => Err(TrialError::Move { way, errno }),
    }
}
