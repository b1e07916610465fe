//! Which of our crates may stand on which: the direction in which data does not flow.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::cargo;

/// Each crate with those of ours that it may use, not counting tests.
const ALLOWED: [(&str, &[&str]); 21] = [
    ("hmm-uapi", &[]),
    ("hmm-device", &[]),
    ("hmm-codec", &["hmm-device"]),
    ("hmm-core", &["hmm-device"]),
    ("hmm-dmirror", &["hmm-core", "hmm-device", "hmm-uapi"]),
    ("hmm-file", &["hmm-codec", "hmm-device", "hmm-uapi"]),
    ("hmm-lz4", &["hmm-codec", "hmm-device", "hmm-uapi"]),
    ("hmm", &["hmm-core", "hmm-device", "hmm-lz4", "hmm-uapi"]),
    ("hmm-agent", &["hmm", "hmm-core", "hmm-device", "hmm-dmirror", "hmm-file", "hmm-lz4", "hmm-uapi"]),
    ("hmm-soft", &["hmm", "hmm-core", "hmm-device", "hmm-lz4", "hmm-uapi"]),
    ("hmm-capi", &["hmm", "hmm-core", "hmm-device", "hmm-lz4", "hmm-soft", "hmm-uapi"]),
    ("hmm-bench", &["hmm", "hmm-core", "hmm-device", "hmm-lz4", "hmm-soft", "hmm-uapi"]),
    ("hmm-model", &[]),
    ("hmm-programs", &[]),
    ("hmm-torture", &["hmm", "hmm-model", "hmm-programs"]),
    ("hmm-replay", &["hmm-core"]),
    (
        "hmm-cli",
        &["hmm", "hmm-bench", "hmm-core", "hmm-device", "hmm-lz4", "hmm-replay", "hmm-torture", "hmm-uapi"],
    ),
    ("hmm-sim", &["hmm-core", "hmm-device", "hmm-model"]),
    ("hmm-conformance", &["hmm"]),
    ("hmm-oracle", &[]),
    ("xtask", &[]),
];

/// The names of all crates.
#[cfg(test)]
pub(crate) fn crates() -> impl Iterator<Item = &'static str> {
    ALLOWED.into_iter().map(|(name, _)| name)
}

pub(crate) fn check() -> Result<Vec<String>> {
    let mut command = cargo()?;
    let output = command.args(["metadata", "--no-deps", "--format-version=1"]).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    Ok(packages.iter().flat_map(check_package).collect())
}

fn check_package(package: &Value) -> Vec<String> {
    let name = package["name"].as_str().unwrap_or_default();
    let Some((_, allowed)) = ALLOWED.iter().find(|(this, _)| *this == name) else {
        return vec![format!(
            "{name}: a new crate: say in xtask/src/tidy/dependencies.rs what it may stand on"
        )];
    };
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    dependencies
        // Ours have a path. Tests may use everything.
        .filter(|dependency| dependency["path"].is_string() && dependency["kind"] != "dev")
        .filter_map(|dependency| dependency["name"].as_str())
        .filter(|dependency| !allowed.contains(dependency))
        .map(|dependency| format!("{name}: may not depend on {dependency}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_direction_is_found() {
        let package = |name: &str, dependency: &str, kind: &str| serde_json::json!({"name": name, "dependencies": [{"name": dependency, "path": "/", "kind": kind}]});
        assert!(check_package(&package("hmm-core", "hmm-device", "")).is_empty());
        assert!(check_package(&package("hmm-core", "hmm-model", "dev")).is_empty());
        assert_eq!(
            check_package(&package("hmm-core", "hmm-uapi", "")),
            ["hmm-core: may not depend on hmm-uapi"]
        );
        assert_eq!(check_package(&package("hmm-new", "hmm", "")).len(), 1);
    }

    #[test]
    fn what_is_allowed_is_no_circle() {
        // In an order where everything stands on what came before it.
        let mut known: Vec<&str> = Vec::new();
        for (name, allowed) in ALLOWED {
            assert!(allowed.iter().all(|other| known.contains(other)), "{name}");
            known.push(name);
        }
    }
}
