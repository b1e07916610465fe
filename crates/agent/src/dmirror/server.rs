//! The device thread: everything that happens to the open devices of this process, one thing after the other.

use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hmm::runtime::Runtime;
use hmm::uapi::process_vm;
use hmm::uapi::sys::{getpid, gettid, set_thread_name};
use hmm::uapi::{AddrRange, Errno, Mapping};
use hmm_dmirror::{CHUNK_BYTES, CMD_BYTES, Caller, Cmd, Command, Memory, Mirror, NR_DEVICES, Number};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType,
};

use super::client::{REQUEST_BYTES, Request};
use super::names;
use super::space::EngineSpace;

use crate::why::Why;

/// Chunks of addresses that a private device is given: what the system has, the first of these. A coherent one has one.
const RESERVES: [usize; 3] = [64, 16, 2];
/// Names that are tried before there are no devices.
const MAX_NAMES: usize = 64;
/// Programs that open a device and were not yet heard.
const BACKLOG: i32 = 64;
/// How long a caller may take from saying that he closes to having closed.
const CLOSING: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

const NR: usize = NR_DEVICES as usize;

/// The devices' memory, and what they work on.
static MEMORIES: OnceLock<[Arc<Memory>; NR]> = OnceLock::new();
static SPACE: OnceLock<Arc<EngineSpace>> = OnceLock::new();
/// From [`listen`] to [`serve`].
static LISTENERS: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
/// The open devices. Locked by the device thread only, but for the moment of a fork.
static OPEN: Mutex<Vec<Open>> = Mutex::new(Vec::new());

/// An open device, and our end of the connection to whoever has its descriptor.
struct Open {
    socket: OwnedFd,
    mirror: Mirror<EngineSpace>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets addresses for the devices' memory aside. They are never managed, so this comes before memory is looked for. Returns
/// them.
///
/// # Errors
/// What to tell the user.
pub(crate) fn reserve() -> Result<Vec<AddrRange>, Why> {
    let mut ranges = Vec::new();
    let mut memory = |device: Number| {
        let chunks: &[usize] = match device.kind() {
            hmm::device::MemKind::Private => &RESERVES,
            hmm::device::MemKind::Coherent => &[1],
        };
        let range = chunks.iter().find_map(|nr| Mapping::reserve(nr * CHUNK_BYTES).ok());
        let range = range.ok_or("no addresses left for the test devices: raise the limit (ulimit -v)")?;
        ranges.push(range.range());
        Ok::<_, Why>(Arc::new(Memory::new(device, range)))
    };
    let memories = Number::all().map(&mut memory).collect::<Result<Vec<_>, _>>()?;
    let memories = <[_; NR]>::try_from(memories).map_err(|_| "another number of devices")?;
    let _ = MEMORIES.set(memories);
    Ok(ranges)
}

/// Listens for those who open a device of this process, on a thread with the agent's descriptors.
///
/// # Errors
/// What to tell the user.
pub(crate) fn listen(runtime: &'static Runtime) -> Result<(), Why> {
    let memories = MEMORIES.get().ok_or("the test devices have no memory")?;
    if SPACE.get().is_none() {
        let _ = SPACE.set(Arc::new(EngineSpace::new(runtime, memories)?));
    }
    let process = getpid().unsigned_abs();
    let mut result = Err(Errno::ADDRINUSE);
    for _ in 0..MAX_NAMES {
        names::choose(process);
        result = Number::all().map(listener).collect::<Result<Vec<_>, _>>();
        if !matches!(result, Err(Errno::ADDRINUSE)) {
            break;
        }
    }
    *lock(&LISTENERS) = result.map_err(Why::not("cannot listen for the test devices"))?;
    super::turn_on();
    Ok(())
}

fn listener(device: Number) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&socket, &names::listener(device)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// In front of a fork: what is in the devices' memory will be shared, and no device may write to it any more.
pub(crate) fn share_frames() {
    MEMORIES.get().into_iter().flatten().for_each(|memory| memory.forbid_writes());
}

/// In the child of a fork, before its threads are started: what is open is the parent's. The descriptors were closed with
/// all others.
pub(crate) fn forget() {
    for open in std::mem::take(&mut *lock(&OPEN)) {
        let _ = open.socket.into_raw_fd();
    }
    for listener in std::mem::take(&mut *lock(&LISTENERS)) {
        let _ = listener.into_raw_fd();
    }
}

/// The device thread's life.
pub(crate) fn serve() {
    let _ = set_thread_name(c"hmm-dmirror");
    let Some(runtime) = crate::control::runtime() else { return };
    let listeners = std::mem::take(&mut *lock(&LISTENERS));
    runtime.enlist();
    loop {
        runtime.park_if_frozen();
        let mut open = lock(&OPEN);
        let ready = wait(runtime, &listeners, &open);
        for (device, listener) in Number::all().zip(&listeners) {
            if ready.first(device) {
                accept(device, listener, &mut open);
            }
        }
        serve_open(&mut open, &ready);
    }
}

/// What can be read from.
struct Ready(Vec<bool>);

impl Ready {
    fn first(&self, device: Number) -> bool {
        self.0.get(usize::from(device.get())).copied().unwrap_or(false)
    }

    fn open(&self, index: usize) -> bool {
        self.0.get(NR + index).copied().unwrap_or(false)
    }
}

fn wait(runtime: &Runtime, listeners: &[OwnedFd], open: &[Open]) -> Ready {
    let [alarm, _] = runtime.eventfds();
    let sockets = listeners.iter().chain(open.iter().map(|open| &open.socket));
    let mut fds: Vec<_> = sockets.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    fds.push(PollFd::from_borrowed_fd(alarm, PollFlags::IN));
    // EINTR is impossible with signals blocked.
    let _ = poll(&mut fds, None);
    Ready(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
}

fn accept(device: Number, listener: &OwnedFd, open: &mut Vec<Open>) {
    let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) else { return };
    let is_ours = rustix::net::sockopt::socket_peercred(&socket)
        .is_ok_and(|peer| peer.pid.as_raw_nonzero().get() == getpid());
    // Another process's memory is not what this one's devices mirror.
    let (true, Some(memories), Some(space)) = (is_ours, MEMORIES.get(), SPACE.get()) else { return };
    let memory = Arc::clone(&memories[usize::from(device.get())]);
    if let Ok(mirror) = Mirror::open(device, memory, Arc::clone(space)) {
        open.push(Open { socket, mirror });
    }
}

/// One request of each that has some; those at their end are closed.
fn serve_open(open: &mut Vec<Open>, ready: &Ready) {
    for index in (0..open.len()).rev() {
        if !ready.open(index) {
            continue;
        }
        let closing = match receive(&open[index].socket) {
            Received::Request(request, pair) => answer(&open[index], request, pair),
            Received::Nothing => None,
            Received::End => {
                open.swap_remove(index).mirror.close();
                None
            }
        };
        if let Some(pair) = closing {
            if has_ended(&open[index].socket) {
                open.swap_remove(index).mirror.close();
            }
            reply(&pair, 0);
        }
    }
}

enum Received {
    Request(Request, OwnedFd),
    /// Something that we did not send.
    Nothing,
    /// Nobody has the descriptor any more.
    End,
}

fn receive(socket: &OwnedFd) -> Received {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; REQUEST_BYTES];
    let mut data = [rustix::io::IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = match rustix::net::recvmsg(socket, &mut data, &mut control, flags) {
        Ok(received) => received.bytes,
        Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
        Err(_) => return Received::End,
    };
    let mut pair = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            pair = fds.next();
        }
    }
    match (received, Request::from_bytes(&bytes), pair) {
        (0, _, None) => Received::End,
        (REQUEST_BYTES, Some(request), Some(pair)) => Received::Request(request, pair),
        _ => Received::Nothing,
    }
}

/// Does what is asked for. Returns the way back to somebody who has closed his descriptor.
fn answer(open: &Open, request: Request, pair: OwnedFd) -> Option<OwnedFd> {
    match request {
        Request::Ioctl { request, addr } => {
            reply(&pair, ioctl(open, request, addr, &pair).err().unwrap_or(0));
            None
        }
        Request::Close => {
            let mut fds = [PollFd::new(&pair, PollFlags::IN)];
            let _ = poll(&mut fds, Some(&CLOSING));
            Some(pair)
        }
    }
}

fn reply(pair: &OwnedFd, errno: i32) {
    // Who does not wait any more need not be told.
    let _ = rustix::net::send(pair, &errno.to_ne_bytes(), SendFlags::NOSIGNAL);
}

/// Whether nobody has the other end any more.
fn has_ended(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

fn ioctl(open: &Open, request: u32, addr: u64, pair: &OwnedFd) -> Result<(), i32> {
    const FAULT: i32 = Errno::FAULT.raw_os_error();
    const INVALID: i32 = Errno::INVAL.raw_os_error();
    let caller = Process::of(pair.as_fd()).ok_or(FAULT)?;
    let mut bytes = [0; CMD_BYTES];
    if !caller.read(addr, &mut bytes) {
        return Err(FAULT);
    }
    let command = Command::of_request(request).ok_or(INVALID)?;
    // What the program has unmapped or discarded before is gone for its devices.
    open.mirror.settle();
    let out = open.mirror.command(command, Cmd::from_bytes(&bytes), &caller).map_err(|why| why.errno())?;
    if caller.write(addr, &out.to_bytes()) { Ok(()) } else { Err(FAULT) }
}

/// The process that a request came from.
#[derive(Debug)]
struct Process {
    /// One of its threads.
    pid: i32,
}

impl Process {
    /// Who made the pair.
    fn of(pair: BorrowedFd<'_>) -> Option<Self> {
        let pid = rustix::net::sockopt::socket_peercred(pair).ok()?.pid.as_raw_nonzero().get();
        // Of this process that is a thread which is certainly there: the main one may have ended.
        Some(Self { pid: if pid == getpid() { gettid() } else { pid } })
    }
}

impl Caller for Process {
    fn read(&self, addr: u64, to: &mut [u8]) -> bool {
        let is_own = self.pid == gettid();
        if is_own { process_vm::read_own(addr, to) } else { process_vm::read(self.pid, addr, to) }.is_ok()
    }

    fn write(&self, addr: u64, from: &[u8]) -> bool {
        // SAFETY: the program said where. If that is this process's memory, it is memory that the program asked to have
        // written, and nothing of the agent's lies where the program has any business.
        unsafe { process_vm::write(self.pid, addr, from) }.is_ok()
    }
}
