//! Every fuzz target over the octets that are kept for it, without a fuzzer; and that targets,
//! programs and octets belong together.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

#[path = "../fuzz/targets/mod.rs"]
mod targets;

/// Most files of a target, and most octets of one: they are for reading, and for a quick test.
const FILES_MAX: usize = 64;
const OCTETS_MAX: usize = 4_096;

fn own(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(path)
}

fn files(path: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(own(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn every_claim_about_a_parser_holds_for_the_octets_that_are_kept() {
    let mut failed = Vec::new();
    for (target, run) in targets::ALL {
        let files = files(&format!("corpus/{target}"));
        assert!((1..=FILES_MAX).contains(&files.len()), "{target}: {} files", files.len());
        for path in files {
            let octets = fs::read(&path).unwrap();
            assert!(octets.len() <= OCTETS_MAX, "{} is too long", path.display());
            // What fails is shown by the panic; which file it was is told once all have run.
            if catch_unwind(|| run(&octets)).is_err() {
                failed.push(path);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_target_has_its_program_and_its_octets_and_there_are_no_others() {
    let names = targets::ALL.map(|(name, _)| name.to_owned());
    assert!(names.is_sorted());
    let targets = BTreeSet::from(names);
    assert_eq!(files("corpus").iter().map(|path| name(path)).collect::<BTreeSet<_>>(), targets);

    let manifest = fs::read_to_string(own("Cargo.toml")).unwrap();
    let programs: BTreeSet<String> = files("fuzz_targets")
        .iter()
        .map(|path| {
            let file = name(path);
            let name = file.strip_suffix(".rs").unwrap().to_owned();
            let entry = format!("[[bin]]\nname = \"{name}\"\npath = \"fuzz_targets/{file}\"\n");
            assert!(manifest.contains(&entry), "{name} is not built");
            // It runs the target whose name it has.
            let calls = format!("::{name}(octets));\n");
            assert!(fs::read_to_string(path).unwrap().ends_with(&calls), "{name}");
            name
        })
        .collect();
    assert_eq!(programs, targets);

    let lock = fs::read_to_string(own("Cargo.lock")).unwrap();
    let socksd = concat!("name = \"socksd\"\nversion = \"", env!("CARGO_PKG_VERSION"), "\"\n");
    assert!(lock.contains(socksd), "tests/fuzz/Cargo.lock is of another version");
}
