//! sqlite3 with all of its database in memory.

use hmm_programs::skip::has_programs;
use hmm_programs::{Job, can_run, same_within_budgets, scale};

#[test]
fn a_database_in_memory() {
    if !can_run() || !has_programs(&["sqlite3"]) {
        return;
    }
    let rows = 400_000 * scale();
    let script = format!(
        "
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -4000000;
CREATE TABLE item(id INTEGER PRIMARY KEY, kind INTEGER, name TEXT, weight INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
INSERT INTO item SELECT i, (i * 2654435761) % 1009, printf('%016x and %08x', i * 6364136223846793005, i * 40503), i * 48271 % 65537 FROM n;
CREATE INDEX by_name ON item(name);
CREATE INDEX by_kind ON item(kind, weight);
SELECT count(*), sum(weight), min(name), max(name) FROM item;
SELECT kind, count(*), sum(weight), max(name) FROM item GROUP BY kind ORDER BY kind;
UPDATE item SET weight = weight + 1, name = name || '.' WHERE kind % 3 = 0;
DELETE FROM item WHERE kind % 7 = 1;
SELECT a.kind, count(*) FROM item a JOIN item b ON b.id = a.weight + 1 GROUP BY a.kind ORDER BY 2 DESC, 1 LIMIT 50;
SELECT name FROM item ORDER BY name LIMIT 100 OFFSET 1000;
PRAGMA integrity_check;
"
    );
    same_within_budgets(&Job::new("sqlite3").args([":memory:", &script]));
}
