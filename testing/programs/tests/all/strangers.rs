//! hmm's threads in the program never call its allocator, whose memory may be away: `c/strangers.c` ends a program in which they do.

use hmm_programs::{Hmm, Job, MIB, TempDir, can_run, compile, compile_library};

const SIGILL: i32 = 4;

/// A bit of all that has the agent do something: memory that leaves and comes home, threads that end, forks of forks, mappings that
/// move, programs that are executed, other rights.
const BUSY: &str = "
import hashlib, mmap, os, random, subprocess, threading
def digest(blocks): return hashlib.sha256(b''.join(hashlib.sha256(b).digest() for b in blocks)).hexdigest()
r = random.Random(1)
blocks = [bytearray(r.randbytes(1 << 12) * 64) for _ in range(192)]
print(digest(blocks), flush=True)
def work(n):
    mine = [bytearray(r.randbytes(1 << 10) * 256) for _ in range(16)]
    for b in mine[::2]: b.extend(b)
for n in range(24):
    threads = [threading.Thread(target=work, args=(n,)) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
big = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
big[:] = b'x' * len(big)
big.resize(24 << 20)
def child(depth):
    pid = os.fork()
    if pid == 0:
        if depth: child(depth - 1)
        blocks[0][0] ^= 1
        print(depth, digest(blocks), big[0], flush=True)
        os._exit(0)
    return os.waitpid(pid, 0)[1]
print([child(2) for _ in range(4)])
print(subprocess.run(['sort', '-r'], input=b'a\\nb\\n' * 1000, capture_output=True).stdout[:4])
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
print(digest(blocks))
";

#[test]
fn the_agent_never_calls_the_programs_malloc() {
    let dir = TempDir::new();
    let Some(library) = compile_library("strangers", &dir).filter(|_| can_run()) else { return };
    let Some(stranger) = compile("strangers", &dir) else { return };
    let noticed = Job::new(stranger).env("LD_PRELOAD", &library).alone();
    assert_eq!(noticed.signal(), Some(SIGILL), "the library does not notice: {noticed:?}");

    let job = Job::python(BUSY).env("LD_PRELOAD", &library);
    let alone = job.alone();
    assert!(alone.status.success(), "{} {}", alone.status, alone.stderr);
    for device in ["lz4", "file:path=/var/tmp,cap=1G"] {
        let managed = job.under(&Hmm::ram(24 * MIB).device(device));
        assert!(managed.status.success(), "{device}: {} {}", managed.status, managed.stderr);
        assert_eq!(managed.stdout(), alone.stdout(), "{device}");
        let stats = managed.stats();
        assert!(stats.count("pgstore") > 0 && stats.count("pgfetch") > 0, "{stats}");
    }
}
