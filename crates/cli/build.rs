//! Builds the library that `hmm run` preloads, so that it travels inside the command.
//!
//! The agent is a `cdylib` of this workspace. Cargo cannot embed one package's library in another's binary yet, so it is
//! built here by a cargo of its own, in a target directory of its own (the outer one is locked), always optimised, and
//! untouched by what the outer build does to its own code (coverage, sanitizers, clippy).

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the outer cargo, or whoever called it, may have set for the outer build only.
const NOT_INHERITED: [&str; 8] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTFLAGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "CARGO_TARGET_DIR",
];

fn main() -> Result<(), Box<dyn Error>> {
    let crates = parent(Path::new(&variable("CARGO_MANIFEST_DIR")?))?;
    let root = parent(&crates)?;
    watch_sources(&root);

    let target = variable("TARGET")?;
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let target_dir = out_dir.join("agent");
    build_agent(&crates.join("agent/Cargo.toml"), &target, &target_dir)?;

    let library = target_dir.join(&target).join("release/libhmm_agent.so");
    std::fs::copy(&library, out_dir.join("libhmm_agent.so"))
        .map_err(|error| format!("the agent's build left no {}: {error}", library.display()))?;
    Ok(())
}

/// Lexically, so that a tree of symbolic links stays in itself.
fn parent(path: &Path) -> Result<PathBuf, String> {
    path.parent().map(Path::to_owned).ok_or_else(|| format!("{} has no parent directory", path.display()))
}

fn variable(name: &str) -> Result<String, String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).map_err(|error| format!("{name}: {error}; it is set by cargo"))
}

/// Everything that goes into the agent.
fn watch_sources(root: &Path) {
    let mut paths = vec![root.join("Cargo.toml"), root.join("Cargo.lock"), root.join("devices")];
    for package in ["agent", "core", "device", "hmm", "uapi"] {
        paths.push(root.join("crates").join(package).join("src"));
        paths.push(root.join("crates").join(package).join("Cargo.toml"));
    }
    for path in paths.iter().filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
}

fn build_agent(manifest: &Path, target: &str, target_dir: &Path) -> Result<(), String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--lib", "--release", "--quiet", "--target", target]);
    cargo.args(["--config", "profile.release.strip='symbols'", "--config", "profile.release.debug=false"]);
    cargo.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(target_dir);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    match cargo.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("building the agent failed ({status}); its messages are above")),
        Err(error) => Err(format!("cannot start cargo to build the agent: {error}")),
    }
}
