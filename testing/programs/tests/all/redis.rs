//! redis-server: a program that serves others, with jemalloc in it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hmm_programs::procs;
use hmm_programs::skip::has_programs;
use hmm_programs::{Hmm, Job, MIB, TempDir, can_run, scale};

const PATIENCE: Duration = Duration::from_secs(60);
const NR_KEYS: u64 = 60_000;

/// A server that is killed if the test fails.
struct Server {
    child: Child,
    dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        procs::kill_tree(self.child.id());
        let _gone = self.child.wait();
    }
}

impl Server {
    fn start(ram: u64) -> Self {
        let dir = TempDir::new();
        let words = ["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"];
        let job =
            Job::new("redis-server").args(words).arg(dir.join("socket")).args(["--dir"]).arg(dir.path());
        let mut server = Self { child: job.spawn_under(&Hmm::ram(ram), &dir), dir };
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
    let commands: String = (0..nr_keys).map(|key| format!("SET key:{key} {}\r\n", value(key))).collect();
    let commands = server.dir.file("commands", commands);
    let reply = server.client(&["redis-cli", "--pipe"], Some(&commands));
    let reply = String::from_utf8_lossy(&reply.stdout).into_owned();
    assert!(reply.contains(&format!("errors: 0, replies: {nr_keys}")), "{reply}");
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
    // Every value, and all at once.
    let gets: String = (0..nr_keys).map(|key| format!("GET key:{key}\n")).collect();
    let gets = server.dir.file("gets", gets);
    let values = server.client(&["redis-cli"], Some(&gets)).stdout;
    let values = String::from_utf8(values).unwrap();
    assert_eq!(values.lines().count() as u64, nr_keys);
    for (key, line) in (0..).zip(values.lines()) {
        assert!(line == value(key), "key:{key} is {line}");
    }
    assert_eq!(server.cli(&["STRLEN", "key:7"]), "1024");
    // A snapshot is a fork that reads everything.
    assert_eq!(server.cli(&["BGSAVE"]), "Background saving started");
    let start = Instant::now();
    while !server.cli(&["INFO", "persistence"]).contains("rdb_bgsave_in_progress:0") {
        assert!(
            start.elapsed() < PATIENCE * 2,
            "the snapshot does not end: {}",
            procs::describe(server.child.id())
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        server.cli(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:ok"),
        "{}",
        server.log("stdout")
    );
    let _no_reply = Command::new("redis-cli")
        .arg("-s")
        .arg(server.dir.join("socket"))
        .args(["SHUTDOWN", "NOSAVE"])
        .output();
    let start = Instant::now();
    let status = loop {
        match server.child.try_wait().unwrap() {
            Some(status) => break status,
            None => {
                assert!(start.elapsed() < PATIENCE, "it does not end: {}", procs::describe(server.child.id()))
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success(), "{status}: {}", server.log("stderr"));
    let stats: serde_json::Value = serde_json::from_str(&server.log("stats.json")).unwrap();
    assert!(stats["counters"]["pgstore"].as_u64().unwrap() * 4096 > 30 * MIB * scale(), "{stats:#}");
    assert_eq!(stats["counters"]["pgpoison"], 0, "{stats:#}");
    assert!(stats["peak_resident_bytes"].as_u64().unwrap() <= 24 * MIB * scale(), "{stats:#}");
}
