//! The applications: what each of them does, and what it prints that only right bytes give.

use crate::data::Random;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One program that people use, or the like of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum App {
    /// sort(1) of lines of text.
    Sort,
    /// numpy: sorts, gathers and multiplies arrays.
    Numpy,
    /// redis-server, filled and then read by redis-benchmark at random.
    Redis,
    /// sqlite3 with a database in memory.
    Sqlite,
    /// A breadth-first walk over a graph that is all over the place.
    Graph,
}

impl App {
    pub(crate) const ALL: [Self; 5] = [Self::Sort, Self::Numpy, Self::Redis, Self::Sqlite, Self::Graph];

    /// The name in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sort => "sort",
            Self::Numpy => "numpy",
            Self::Redis => "redis",
            Self::Sqlite => "sqlite",
            Self::Graph => "graph",
        }
    }

    /// What it does, for people.
    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Sort => "sort(1) of a file of random lines",
            Self::Numpy => "numpy: sort, gather by a permutation, multiply matrices",
            Self::Redis => "redis-server, loaded, then redis-benchmark GET of random keys",
            Self::Sqlite => "sqlite3 :memory:, insert, index, group, update, join",
            Self::Graph => "breadth-first walk over a random graph",
        }
    }

    /// Why it cannot run here, if it cannot.
    pub(crate) fn lacks(self) -> Option<String> {
        let missing = self.programs().iter().find(|program| !is_there(program));
        if let Some(program) = missing {
            return Some(format!("there is no {program} here"));
        }
        let numpy = || Command::new(PYTHON).args(["-c", "import numpy"]).stderr(Stdio::null()).status();
        let lacks_numpy = self == Self::Numpy && !numpy().is_ok_and(|status| status.success());
        lacks_numpy.then(|| format!("{PYTHON} has no numpy (Debian: python3-numpy)"))
    }

    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Sort => &["sort", "sha256sum"],
            Self::Numpy => &[PYTHON],
            Self::Redis => &["redis-server", "redis-cli", "redis-benchmark"],
            Self::Sqlite => &["sqlite3"],
            Self::Graph => &[],
        }
    }

    /// Makes what it reads, and says how to start it. `scale` is 1 for a smoke run, and 4 for about 200 MiB.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub(crate) fn prepare(self, dir: &Path, scale: u64) -> Result<Start> {
        let shell = |script: String| Start { words: vec!["sh".into(), "-c".into(), script] };
        Ok(match self {
            Self::Sort => {
                let input = dir.join("lines");
                lines(&input, 400_000 * scale)?;
                // With room for all of it, so that it does not write to files.
                let sort = format!("sort -S 1G --parallel=2 -T {0} {0}/lines", quoted(dir));
                shell(format!("export LC_ALL=C; {{ {sort} || echo failed; }} | sha256sum"))
            }
            Self::Numpy => Start { words: vec![PYTHON.into(), "-c".into(), numpy(scale)] },
            Self::Redis => {
                let keys = 40_000 * scale;
                load(&dir.join("load"), keys)?;
                shell(redis(dir, keys))
            }
            Self::Sqlite => Start { words: vec!["sqlite3".into(), ":memory:".into(), sqlite(scale)] },
            Self::Graph => {
                let program = std::env::current_exe().context("cannot find this program's own file")?;
                let program = program.to_string_lossy().into_owned();
                Start { words: super::GraphArgs { nodes: 1 << 18, degree: 32 * scale }.command_line(program) }
            }
        })
    }
}

const PYTHON: &str = "/usr/bin/python3";

/// How to start an application: the program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) words: Vec<String>,
}

fn is_there(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// For sh(1).
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn writer(path: &PathBuf) -> Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(BufWriter::new(file))
}

/// Lines of 64 characters.
fn lines(path: &PathBuf, nr_lines: u64) -> Result<()> {
    let (mut out, mut random) = (writer(path)?, Random::new(11));
    for number in 0..nr_lines {
        writeln!(
            out,
            "{:016x} {:08x} of many lines of text {number:012}",
            random.next(),
            random.next() >> 32
        )?;
    }
    out.flush().context("cannot write the lines to sort")
}

/// Commands that set keys as redis-benchmark names them, to values of 1 KiB that compress about 3:1.
fn load(path: &PathBuf, nr_keys: u64) -> Result<()> {
    let (mut out, mut random) = (writer(path)?, Random::new(12));
    for key in 0..nr_keys {
        let mut value = String::with_capacity(1100);
        while value.len() < 1024 {
            let _ = write!(value, "{:016x} and then what follows it; ", random.next());
        }
        writeln!(out, "SET key:{key:012} \"{}\"\r", &value[..1024])?;
    }
    out.flush().context("cannot write the keys to load")
}

fn numpy(scale: u64) -> String {
    let script = "
import hashlib, numpy as np
def say(name, a): print(name, hashlib.sha256(np.ascontiguousarray(a)).hexdigest())
r = np.random.default_rng(7)
n = (1 << 21) * SCALE
a = r.integers(0, 1 << 40, n)
a.sort()
say('sorted', a)
p = r.permutation(n)
say('gathered', a[p])
m = int(700 * SCALE ** .5)
x = np.floor(r.random((m, m)) * 64)
y = np.floor(r.random((m, m)) * 64)
say('product', x @ y)
";
    script.replace("SCALE", &scale.to_string())
}

fn redis(dir: &Path, keys: u64) -> String {
    let script = "
cd DIR || exit 1
redis-server --port 0 --save '' --appendonly no --unixsocket DIR/socket --enable-debug-command yes > log 2>&1 &
server=$!
n=0
until redis-cli -s DIR/socket ping > ping 2>&1; do n=$((n + 1)); [ $n -lt 600 ] || { cat log >&2; exit 1; }; sleep 0.05; done
redis-cli -s DIR/socket --pipe < load > loaded || { cat loaded >&2; exit 1; }
redis-benchmark -s DIR/socket -c 8 -n KEYS -r KEYS -q GET key:__rand_int__ > said 2>&1 || { cat said >&2; exit 1; }
redis-cli -s DIR/socket dbsize
redis-cli -s DIR/socket debug digest
redis-cli -s DIR/socket shutdown nosave
wait $server
";
    script.replace("DIR", &quoted(dir)).replace("KEYS", &keys.to_string())
}

fn sqlite(scale: u64) -> String {
    let script = "
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -4000000;
CREATE TABLE item(id INTEGER PRIMARY KEY, kind INTEGER, name TEXT, weight INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ROWS)
INSERT INTO item SELECT i, (i * 2654435761) % 1009, printf('%016x and %08x', i * 6364136223846793005, i * 40503),
  i * 48271 % 65537 FROM n;
CREATE INDEX by_name ON item(name);
CREATE INDEX by_kind ON item(kind, weight);
SELECT count(*), sum(weight), min(name), max(name) FROM item;
SELECT sum(kind * n), sum(w), max(m) FROM (SELECT kind, count(*) n, sum(weight) w, max(name) m FROM item GROUP BY kind);
UPDATE item SET weight = weight + 1, name = name || '.' WHERE kind % 3 = 0;
SELECT a.kind, count(*) FROM item a JOIN item b ON b.id = a.weight + 1 GROUP BY a.kind ORDER BY 2 DESC, 1 LIMIT 20;
SELECT name FROM item ORDER BY name LIMIT 20 OFFSET 1000;
PRAGMA integrity_check;
";
    script.replace("ROWS", &(150_000 * scale).to_string())
}

/// A directory that goes with everything in it.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// Makes one that nobody else has made.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn new(parent: &Path, name: &str) -> Result<Self> {
        let path = parent.join(format!("hmm-bench-{}-{name}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make the directory {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed from the directory for temporary files is left to whoever cleans that.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_the_same_each_time() {
        let make = |name: &str| {
            let dir = Directory::new(&std::env::temp_dir(), name).unwrap();
            lines(&dir.path().join("lines"), 50).unwrap();
            load(&dir.path().join("load"), 5).unwrap();
            let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
            (read("lines"), read("load"))
        };
        let (one, other) = (make("one"), make("other"));
        assert_eq!(one, other);
        assert_eq!(one.0.lines().count(), 50);
        assert!(one.1.starts_with("SET key:000000000000 \""), "{}", one.1);
        assert!(one.1.lines().all(|line| line.len() > 1024), "{}", one.1);
    }

    #[test]
    fn scripts_have_nothing_left_to_fill_in() {
        assert!(!numpy(2).contains("SCALE") && !sqlite(2).contains("ROWS"));
        let script = redis(Path::new("/a'b"), 7);
        assert!(
            !script.contains("DIR") && !script.contains("KEYS") && script.contains(r"'/a'\''b'/socket"),
            "{script}"
        );
        assert!(is_there("sh") && is_there("/bin/sh") && !is_there("no-such-program"));
    }
}
