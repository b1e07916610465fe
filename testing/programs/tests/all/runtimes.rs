//! Runtimes that manage memory of their own: a JVM, node, Go; a database server; a debugger; processes of make.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use hmm_programs::skip::has_programs;
use hmm_programs::{
    Hmm, Job, MIB, TempDir, assert_same_output, can_run, compile, procs, same_within_budgets, scale,
};
use rustix::process::Signal;

/// Reserves gigabytes of addresses, moves its objects, and unmaps what it has collected.
#[test]
fn java_collects_garbage() {
    if !can_run() || !has_programs(&["java", "javac"]) {
        return;
    }
    let dir = TempDir::new();
    let source = dir.file(
        "Main.java",
        "import java.util.*;
public class Main {
  public static void main(String[] args) {
    int n = Integer.parseInt(args[0]);
    HashMap<Integer, long[]> map = new HashMap<>();
    long sum = 0;
    for (int round = 0; round < 2; round++) {
      for (int i = 0; i < n; i++) {
        long[] value = new long[32];
        for (int j = 0; j < 32; j++) value[j] = (long) i * j + round;
        map.put(i, value);
      }
      for (int i = 0; i < n; i++) for (long x : map.get(i)) sum = sum * 31 + x;
      System.gc();
    }
    System.out.println(sum);
  }
}
",
    );
    let compiled = Job::new("javac").arg("-d").arg(dir.path()).arg(source).alone();
    assert!(compiled.status.success(), "{}", compiled.stderr);
    let nr = (200_000 * scale()).to_string();
    let job = Job::new("java").arg("-cp").arg(dir.path()).args(["-Xmx512m", "Main", &nr]);
    same_within_budgets(&job);
}

#[test]
fn node_fills_a_map() {
    if !can_run() || !has_programs(&["node"]) {
        return;
    }
    let script = format!(
        "const n = {}, map = new Map(), buffers = [];
for (let i = 0; i < n; i++) {{
  map.set('key' + i, {{ number: i, text: 'v'.repeat(20) + i }});
  if (i % 50 === 0) {{ const b = Buffer.alloc(8192); b.writeUInt32LE(i, 4096); buffers.push(b); }}
}}
let sum = 0;
for (let i = 0; i < n; i++) {{ const v = map.get('key' + i); sum = (sum + v.number * 7 + v.text.length) % 1000000007; }}
for (const b of buffers) sum = (sum + b.readUInt32LE(4096)) % 1000000007;
console.log(sum);",
        150_000 * scale()
    );
    same_within_budgets(&Job::new("node").args(["-e", &script]));
}

/// Its runtime maps memory, makes threads and handles signals by itself; C adds up what is in its memory.
#[test]
fn go_and_c_see_one_memory() {
    if !can_run() || !has_programs(&["go", "gcc"]) {
        return;
    }
    let dir = TempDir::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("go/sums.go");
    let program = dir.join("program");
    let compiled = Job::new("go")
        .args(["build", "-o"])
        .args([&program, &source])
        .env("CGO_ENABLED", "1")
        .env("GOCACHE", dir.join("cache"))
        .env("GO111MODULE", "off")
        .alone();
    assert!(compiled.status.success(), "{}", compiled.stderr);
    same_within_budgets(&Job::new(program));
}

/// As root, on a directory that is another user's, because it refuses to be root; else in one of the caller's.
const POSTGRES: &str = r#"
set -e
PATH=/usr/lib/postgresql/15/bin:$PATH
if [ $(id -u) = 0 ]; then
    dir=$(mktemp -d -p "$1")
    chown postgres "$dir"
    exec runuser -u postgres -- sh -c "$0" "$0" "$dir" "$2"
fi
cd "$1"
initdb -D "$1/data" --no-sync -A trust --locale=C -E UTF8 >"$1/log"
set -- "$1" "$2" -c listen_addresses= -c work_mem=1GB -c shared_buffers=16MB -c fsync=off
(shift 2; exec postgres -D data -k "$PWD" "$@") >>"$1/log" 2>&1 &
until pg_isready -q -h "$1"; do kill -0 $! || { cat "$1/log"; exit 1; }; sleep 0.1; done
psql -h "$1" -d postgres -qAt -v n="$2" <<'S'
create table t as select i, md5(i::text) as h, (i::bigint * 7919) % 1000003 as k from generate_series(1, :n) i;
analyze t;
select count(*), md5(string_agg(h, '' order by h)) from t;
select sum(length(x)), md5(string_agg(x, '')) from (select h || k as x from t order by k desc, h) s;
select count(*), sum(n) from (select h, count(*) n from t group by h) s;
select count(*), sum(a.k) from t a join t b on a.h = md5(b.i::text);
create index on t (h);
select i, k from t where h = md5('12345');
S
kill -INT $!
wait $!
"#;

/// It forks a process for each client, and sorts and hashes in memory of its own; nothing but root's program starts it.
#[test]
fn postgres_sorts_and_hashes() {
    if !can_run() || !has_programs(&["/usr/lib/postgresql/15/bin/postgres", "psql", "runuser"]) {
        return;
    }
    let dir = TempDir::new();
    let nr_rows = (200_000 * scale()).to_string();
    same_within_budgets(&Job::sh(POSTGRES).arg(POSTGRES).arg(dir.path()).arg(nr_rows));
}

/// A debugger stops all threads, the agent's among them, reads what is there, and lets them go on.
#[test]
fn gdb_looks_at_a_running_program() {
    if !can_run() || !has_programs(&["gdb"]) {
        return;
    }
    let dir = TempDir::new();
    let Some(program) = compile("debugged", &dir) else { return };
    let mut front = Job::new(&program).arg("64").spawn_under(&Hmm::ram(16 * MIB), &dir);
    let is_it = |pid: &u32| procs::name(*pid) == "debugged";
    let pid = loop {
        if let Some(pid) = procs::tree(front.id()).into_iter().find(is_it) {
            break pid;
        }
        assert!(front.try_wait().unwrap().is_none(), "{}", dir.read("stderr"));
        std::thread::sleep(Duration::from_millis(5));
    };
    let gdb = Job::new("gdb").args(["--quiet", "--batch", "-p", &pid.to_string()]);
    let gdb = gdb.args(["-ex", "info threads", "-ex", "detach"]);
    for _ in 0..3 {
        let seen = gdb.alone().stdout();
        assert!(seen.contains("hmm-handler"), "{seen}");
    }
    procs::signal(pid, Signal::TERM);
    assert!(front.wait().unwrap().success(), "{}", dir.read("stderr"));
    assert_eq!((dir.read("stdout").as_str(), dir.read("stderr").as_str()), ("right\n", ""));
}

/// Many processes that come and go, each of them managed.
#[test]
fn make_compiles_in_two_processes() {
    if !can_run() || !has_programs(&["make", "gcc"]) {
        return;
    }
    let dir = TempDir::new();
    for file in 0..6 {
        let mut source = String::new();
        for n in 0..120 * scale() {
            let _ = writeln!(source, "long f{file}_{n}(long x) {{ return x % {} * {n} + (x >> 3); }}", n + 2);
        }
        dir.file(&format!("part{file}.c"), source);
    }
    dir.file("Makefile", "all: part0.o part1.o part2.o part3.o part4.o part5.o\n\t@nm --defined-only *.o\n%.o: %.c\n\t@$(CC) -O2 -g0 -c $< -o $@\n");
    let job = Job::new("make").args(["-B", "-j2", "-C"]).arg(dir.path()).arg("--no-print-directory");
    let (alone, managed) = (job.alone(), job.under(&Hmm::ram(32 * MIB)));
    assert!(alone.status.success(), "{}", alone.stderr);
    assert_same_output(&managed, &alone);
    let stats = managed.stats();
    assert!(stats.get("peak_resident_bytes") <= 32 * MIB, "{stats}");
    assert_eq!(stats.get("unmanaged_processes"), 0, "{stats}");
}
