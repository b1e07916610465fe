//! python3: many small objects, threads, processes.

use hmm_programs::skip::has_programs;
use hmm_programs::{Job, can_run, same_within_budgets, scale};

fn python(script: &str) {
    if can_run() && has_programs(&["/usr/bin/python3"]) {
        same_within_budgets(&Job::python(&format!("scale = {}\n{script}", scale())));
    }
}

#[test]
fn dictionaries_and_lists() {
    python(
        "
import random
r = random.Random(3)
words = {}
for i in range(100000 * scale):
    words.setdefault('key %x' % r.getrandbits(16 + scale.bit_length()) + 700 * ' ', []).append(i)
print(len(words), sum(map(len, words.values())))
for key in sorted(words, key=lambda key: (len(words[key]), key))[-1000:]:
    print(key.strip(), words[key])
for key in list(words)[::2]: del words[key]
print(len(words), sum(sum(places) for places in words.values()))
",
    );
}

#[test]
fn threads() {
    python(
        "
import threading, hashlib
n = (24 << 20) * scale
arrays, sums = [None] * 4, [None] * 4
def work(k):
    a = bytearray(n)
    for i in range(0, n, 4096): a[i:i + 8] = (i * 7 + k).to_bytes(8, 'little')
    for i in range(0, n, 4096): assert int.from_bytes(a[i:i + 8], 'little') == i * 7 + k, (i, k)
    arrays[k] = a
    sums[k] = hashlib.sha256(a).hexdigest()
threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sums)
for k, a in enumerate(arrays): assert hashlib.sha256(a).hexdigest() == sums[k]
",
    );
}

#[test]
fn both_sides_of_a_fork_write() {
    python(
        "
import os
n = (70 << 20) * scale
b = bytearray(n)
def write(add):
    for i in range(0, n, 4096): b[i:i + 8] = (i + add).to_bytes(8, 'little')
def check(add):
    for i in range(0, n, 4096):
        seen = int.from_bytes(b[i:i + 8], 'little')
        assert seen == i + add, (i, seen, add)
write(0)
check(0)
children = []
for k in range(2):
    pid = os.fork()
    if pid == 0:
        check(0)
        write(7 + k)
        check(7 + k)
        os._exit(k)
    children.append(pid)
write(3)
check(3)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
check(3)
",
    );
}

#[test]
fn subprocesses() {
    python(
        "
import os, subprocess, multiprocessing
b = bytes(range(256)) * ((80 << 20) * scale // 256)
print(subprocess.run(['sha256sum'], input=b, capture_output=True).stdout)
print(subprocess.run(['sh', '-c', 'echo out; echo err >&2; exit 3'], capture_output=True))
print(os.popen('echo hi').read())
for k in range(20): assert subprocess.run(['echo', str(k)], capture_output=True).stdout == b'%d\\n' % k
def part(k): return sum(b[k::65536])
with multiprocessing.Pool(2) as pool: print(pool.map(part, range(16)))
print(sum(b[::4097]))
",
    );
}

#[test]
fn system_calls_on_pages_that_are_away() {
    python(
        "
import os, hashlib, tempfile
n = (80 << 20) * scale
b = bytearray(n)
for i in range(0, n, 4096): b[i:i + 8] = i.to_bytes(8, 'little')
digest = hashlib.sha256(b).hexdigest()
with tempfile.TemporaryFile(buffering=0) as f:
    fd, v, done = f.fileno(), memoryview(b), 0
    while done < n: done += os.write(fd, v[done:])
    for i in range(0, n, 4096): b[i:i + 8] = bytes(8)
    parts = [v[i:i + 65536] for i in range(0, n, 65536)]
    at = 0
    while at < n:
        part = parts[at // 65536:at // 65536 + 256]
        assert os.preadv(fd, part, at) == sum(map(len, part))
        at += sum(map(len, part))
print(digest == hashlib.sha256(b).hexdigest(), digest)
",
    );
}
