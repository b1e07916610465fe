//! redis-server: a program that serves others, with jemalloc in it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hmm_programs::procs;
use hmm_programs::skip::has_programs;
use hmm_programs::{Hmm, Job, MIB, TempDir, can_run, scale};

const PATIENCE: Duration = Duration::from_secs(60);
const NR_KEYS: u64 = 60_000;

/// A server that is killed if the test fails.
struct Server {
    child: Child,
    dir: Rc<TempDir>,
}

impl Drop for Server {
    fn drop(&mut self) {
        procs::kill_tree(self.child.id());
        let _gone = self.child.wait();
    }
}

/// How to start one that has its files in that directory.
fn job(dir: &TempDir, appends: &str) -> Job {
    let words = ["--port", "0", "--save", "", "--enable-debug-command", "yes", "--appendonly", appends];
    Job::new("redis-server")
        .args(words)
        .arg("--unixsocket")
        .arg(dir.join("socket"))
        .arg("--dir")
        .arg(dir.path())
}

impl Server {
    fn start(ram: u64) -> Self {
        let dir = Rc::new(TempDir::new());
        Self::started(job(&dir, "no").spawn_under(&Hmm::ram(ram), &dir), dir)
    }

    fn started(child: Child, dir: Rc<TempDir>) -> Self {
        let mut server = Self { child, dir };
        let start = Instant::now();
        while !server.dir.join("socket").exists() {
            let ended = server.child.try_wait().unwrap();
            let waits = ended.is_none() && start.elapsed() < PATIENCE;
            assert!(
                waits,
                "redis-server does not start: {ended:?} {} {}",
                server.log("stdout"),
                server.log("stderr")
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        // What it reads at its start takes a while.
        while server.cli(&["PING"]) != "PONG" {
            assert!(start.elapsed() < PATIENCE, "{}", server.log("stdout"));
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// A client, which gets what it says on standard input from a file. The watchdog is `timeout`.
    fn client(&self, words: &[&str], input: Option<&Path>) -> Output {
        let seconds = (PATIENCE.as_secs() * scale()).to_string();
        let mut command = Command::new("timeout");
        command.args([&seconds, words[0], "-s"]).arg(self.dir.join("socket")).args(&words[1..]);
        command.stdin(input.map_or_else(Stdio::null, |path| std::fs::File::open(path).unwrap().into()));
        let output = command.output().unwrap();
        let threads = procs::describe(self.child.id());
        assert!(output.status.success(), "{words:?}: {output:?}\n{threads}\n{}", self.log("stderr"));
        output
    }

    fn cli(&self, words: &[&str]) -> String {
        let words: Vec<_> = ["redis-cli"].iter().chain(words).copied().collect();
        String::from_utf8(self.client(&words, None).stdout).unwrap().trim().to_owned()
    }
}

impl Server {
    /// Waits for a child that saves everything.
    fn wait_for(&self, running: &str, ended: &str) {
        let start = Instant::now();
        while !self.cli(&["INFO", "persistence"]).contains(&format!("{running}:0")) {
            let child = self.child.id();
            assert!(start.elapsed() < PATIENCE * 2, "{running} for ever: {}", procs::describe(child));
            std::thread::sleep(Duration::from_millis(50));
        }
        let info = self.cli(&["INFO", "persistence"]);
        assert!(info.contains(&format!("{ended}:ok")), "{info}\n{}", self.log("stdout"));
    }

    /// Has it end, and waits for that.
    fn end(&mut self) {
        let _no_reply = Command::new("redis-cli")
            .arg("-s")
            .arg(self.dir.join("socket"))
            .args(["SHUTDOWN", "NOSAVE"])
            .output();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", procs::describe(self.child.id()));
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{status}: {}", self.log("stderr"));
    }

    fn set_all(&self, nr_keys: u64) {
        let commands: String = (0..nr_keys).map(|key| format!("SET key:{key} {}\r\n", value(key))).collect();
        let commands = self.dir.file("commands", commands);
        let reply = self.client(&["redis-cli", "--pipe"], Some(&commands));
        let reply = String::from_utf8_lossy(&reply.stdout).into_owned();
        assert!(reply.contains(&format!("errors: 0, replies: {nr_keys}")), "{reply}");
    }

    /// Looks at every value, in one go.
    fn check_all(&self, nr_keys: u64) {
        let gets: String = (0..nr_keys).map(|key| format!("GET key:{key}\n")).collect();
        let gets = self.dir.file("gets", gets);
        let values = self.client(&["redis-cli"], Some(&gets)).stdout;
        let values = String::from_utf8(values).unwrap();
        assert_eq!(values.lines().count() as u64, nr_keys);
        for (key, line) in (0..).zip(values.lines()) {
            assert!(line == value(key), "key:{key} is {line}");
        }
    }
}

fn value(key: u64) -> String {
    format!("{:016x}", key.wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(64)
}

#[test]
fn redis_keeps_what_it_was_given() {
    if !can_run() || !has_programs(&["redis-server", "redis-cli", "redis-benchmark", "timeout"]) {
        return;
    }
    // About 70 MiB of values, with what redis-benchmark adds about 90.
    let nr_keys = NR_KEYS * scale();
    let mut server = Server::start(24 * MIB * scale());
    server.set_all(nr_keys);
    let nr_requests = (40_000 * scale()).to_string();
    server.client(
        &[
            "redis-benchmark",
            "-q",
            "-n",
            &nr_requests,
            "-r",
            "20000",
            "-d",
            "1000",
            "-t",
            "set,get,lpush,hset",
        ],
        None,
    );
    server.check_all(nr_keys);
    assert_eq!(server.cli(&["STRLEN", "key:7"]), "1024");
    // A snapshot is a fork that reads everything.
    assert_eq!(server.cli(&["BGSAVE"]), "Background saving started");
    server.wait_for("rdb_bgsave_in_progress", "rdb_last_bgsave_status");
    server.end();
    let stats: serde_json::Value = serde_json::from_str(&server.log("stats.json")).unwrap();
    assert!(stats["counters"]["pgstore"].as_u64().unwrap() * 4096 > 30 * MIB * scale(), "{stats:#}");
    assert_eq!(stats["counters"]["pgpoison"], 0, "{stats:#}");
    assert!(stats["peak_resident_bytes"].as_u64().unwrap() <= 24 * MIB * scale(), "{stats:#}");
}

/// Its children write down what was there at the fork while it serves others, with its memory on each kind of device: what they have
/// written is what a server finds that has all in RAM.
#[test]
fn redis_saves_under_load() {
    if !can_run() || !has_programs(&["redis-server", "redis-cli", "redis-benchmark", "timeout"]) {
        return;
    }
    for device in ["lz4", "file:path=/var/tmp,cap=1G"] {
        save_under_load(device);
    }
}

fn save_under_load(device: &str) {
    let dir = Rc::new(TempDir::new());
    let (nr_keys, ram) = (NR_KEYS / 2 * scale(), 16 * MIB * scale());
    let child = job(&dir, "yes").spawn_under(&Hmm::ram(ram).device(device), &dir);
    let mut server = Server::started(child, Rc::clone(&dir));
    server.set_all(nr_keys);
    let mut load = Command::new("redis-benchmark")
        .arg("-s")
        .arg(server.dir.join("socket"))
        .args(["-q", "-l", "-r", "5000", "-d", "1000", "-t", "set,get,hset"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(server.cli(&["BGSAVE"]), "Background saving started");
    server.wait_for("rdb_bgsave_in_progress", "rdb_last_bgsave_status");
    server.cli(&["BGREWRITEAOF"]);
    server.wait_for("aof_rewrite_in_progress", "aof_last_bgrewrite_status");
    assert!(load.try_wait().unwrap().is_none(), "there was a load all the while");
    load.kill().unwrap();
    load.wait().unwrap();
    server.check_all(nr_keys);
    let digest = server.cli(&["DEBUG", "DIGEST"]);
    server.end();
    let stats: serde_json::Value = serde_json::from_str(&server.log("stats.json")).unwrap();
    assert!(stats["counters"]["pgstore"].as_u64().unwrap() * 4096 > 20 * MIB * scale(), "{stats:#}");
    assert!(stats["peak_resident_bytes"].as_u64().unwrap() <= ram, "{stats:#}");

    // The commands have all that there was in the end, the snapshot all that was there before the load.
    for appends in ["yes", "no"] {
        let mut heir = Server::started(job(&dir, appends).spawn_alone(&dir), Rc::clone(&dir));
        heir.check_all(nr_keys);
        if appends == "yes" {
            assert_eq!(heir.cli(&["DEBUG", "DIGEST"]), digest);
        }
        heir.end();
    }
}
