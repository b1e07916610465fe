//! numpy: large arrays, written and read in every order.

use hmm_programs::skip::{has_programs, skipped};
use hmm_programs::{Job, can_run, same_within_budgets, scale};

fn numpy(script: &str) {
    if !can_run() || !has_programs(&["/usr/bin/python3"]) {
        return;
    }
    if !Job::python("import numpy").alone().status.success() {
        skipped("/usr/bin/python3 has no numpy (Debian: python3-numpy)");
        return;
    }
    let script = format!(
        "import hashlib, numpy as np\n\
         def say(a): print(a.dtype, a.shape, hashlib.sha256(np.ascontiguousarray(a)).hexdigest())\n\
         r = np.random.default_rng(7)\n\
         scale = {}\n{script}",
        scale()
    );
    same_within_budgets(&Job::python(&script).env("OPENBLAS_NUM_THREADS", "2"));
}

#[test]
fn numpy_sorts() {
    numpy(
        "a = r.integers(0, 1 << 40, (12 << 20) * scale)\nsay(a)\na.sort()\nsay(a)\nprint(np.searchsorted(a, [5, 1 << 39]))",
    );
}

#[test]
fn numpy_multiplies_matrices() {
    numpy(
        "n = int(1300 * scale ** .5)\na = r.random((n, n))\nb = r.random((n, n))\nc = a @ b\nc += 1\nd = a * b + c.T\nsay(a)\nsay(c)\nsay(d)",
    );
}

#[test]
fn numpy_gathers_and_scatters() {
    numpy(
        "n = (4 << 20) * scale\na = np.arange(n)\np = r.permutation(n)\nb = a[p]\nsay(b)\nc = np.empty_like(a)\nc[p] = b\nassert (a == c).all()\nsay(c[::-3])\nb[b % 7 == 0] = 0\nsay(b)\nprint(b.sum())",
    );
}
