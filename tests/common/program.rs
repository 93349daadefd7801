//! The program `untorn`, for tests that run it.
//!
//! `cargo test` alone builds no program that needs the feature `cli`. So without the feature it is
//! built here, in a target directory of its own; with it (`cargo test --features cli`) cargo has
//! done so already.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) fn untorn() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

#[cfg(feature = "cli")]
fn build() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_untorn"))
}

#[cfg(not(feature = "cli"))]
fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
    let built = std::process::Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--features", "cli", "--bin", "untorn", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_BUILD_TARGET")
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the command line does not build");
    target.join("debug/untorn")
}
