//! gcc: a driver that starts processes by vfork, one of them large.

use std::fmt::Write;

use hmm_programs::skip::has_programs;
use hmm_programs::{Job, TempDir, can_run, same_within_budgets, scale};

#[test]
fn gcc_compiles_a_large_file() {
    if !can_run() || !has_programs(&["gcc"]) {
        return;
    }
    let mut source = String::from("struct node { struct node *left, *right; long key, value[4]; };\n");
    for n in 0..450 * scale() {
        let _ = write!(
            source,
            "static long f{n}(struct node *p, long x) {{\n\
             long sum = {n};\n\
             for (; p; p = p->key < x + {n} ? p->left : p->right)\n\
             for (int i = 0; i < 4; i++) sum += p->value[i] * (x ^ {n}) + (sum >> {});\n\
             return sum;\n}}\n\
             long g{n}(struct node *p, long x) {{ return f{n}(p, x) + f{n}(p->left, x * 3) % 17; }}\n",
            n % 13 + 1
        );
    }
    let dir = TempDir::new();
    let source = dir.file("large.c", source);
    let object = "/dev/stdout";
    let job = Job::new("gcc").args(["-O1", "-fno-ident", "-S", "-o", object]).arg(source);
    same_within_budgets(&job);
}
