//! The house as `src/lib.rs` draws it: who may use whom, where `unsafe` may stand, what the
//! program is built from, and what lies at the top of the repository.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of the modules in lib.rs, in its order, each with its floor.
fn modules() -> Vec<(String, u32)> {
    let (mut modules, mut floor) = (Vec::new(), None);
    for line in read("src/lib.rs").lines() {
        if let Some(comment) = line.strip_prefix("// ") {
            floor = comment.split(' ').next().and_then(|word| word.parse().ok()).or(floor);
        } else if let Some(name) = line.strip_prefix("pub mod ") {
            let floor = floor.unwrap_or_else(|| panic!("{name} stands on no floor"));
            modules.push((name.trim_end_matches(';').to_owned(), floor));
        }
    }
    modules
}

/// All Rust files below `dir`, by their paths from the root of the repository.
fn files(dir: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join(dir)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{dir}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files.extend(self::files(&path));
        } else if path.ends_with(".rs") {
            files.push(path.into());
        }
    }
    files
}

/// The code of a file, without its comments and without its test modules, which come last.
fn code(path: &Path) -> String {
    let text = read(path);
    let (code, tests) = text.split_once("#[cfg(test)]\n").unwrap_or((&text, "mod tests"));
    let last = tests.starts_with("mod ") || tests.starts_with("pub(crate) mod ");
    assert!(last, "{}: only test modules may be #[cfg(test)], at the end", path.display());
    code.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code)).collect()
}

fn is_part_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The modules named behind `crate::`, one by one or in braces.
fn used(code: &str) -> Vec<&str> {
    let first = |path: &'_ str| path.len() - path.trim_start_matches(is_part_of_name).len();
    code.split("crate::")
        .skip(1)
        .flat_map(|path| {
            let paths = match path.strip_prefix('{') {
                None => vec![path],
                Some(list) => {
                    list.split_once('}').expect("no closing brace").0.split(',').collect()
                }
            };
            paths.into_iter().map(str::trim).map(move |path| &path[..first(path)])
        })
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether `word` stands in `text` by itself, not as a part of a longer name.
fn has_word(text: &str, word: &str) -> bool {
    text.split(|c| !is_part_of_name(c)).any(|other| other == word)
}

#[test]
fn a_module_uses_only_modules_below_it_or_above_it_on_its_floor() {
    let modules = modules();
    let place = |name: &str| modules.iter().position(|(module, _)| module == name);
    let mut seen = 0;
    for path in files("src") {
        let mut parts = path.iter().skip(1).map(|part| part.to_str().unwrap());
        let module = parts.next().unwrap().trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let own = place(module).unwrap_or_else(|| panic!("{module} is not in src/lib.rs"));
        let code = code(&path);
        assert!(!code.contains("super::"), "{}: say crate::", path.display());
        for used in used(&code) {
            let other = place(used).unwrap_or_else(|| panic!("{}: {used}?", path.display()));
            // Places in the list go up with floors, which the next test checks.
            assert!(other <= own, "{} must not use {used}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} uses found: this test has gone blind");
}

#[test]
fn the_list_of_floors_goes_up() {
    let floors: Vec<u32> = modules().into_iter().map(|(_, floor)| floor).collect();
    assert!(floors.is_sorted(), "{floors:?}");
    assert_eq!(floors.first(), Some(&0));
    assert!(floors.len() >= 14, "only {} modules: this test has gone blind", floors.len());
}

#[test]
fn unsafe_stands_in_sys_alone_and_in_the_test_that_counts_allocations() {
    // What the compiler denies, and may be told to allow.
    assert_eq!(read("Cargo.toml").matches("\nunsafe_code = \"deny\"\n").count(), 1);
    for path in [files("src"), files("tests")].concat() {
        let mut text = read(&path);
        match path.to_str().unwrap() {
            path if path.starts_with("src/sys/") => continue,
            // An allocator cannot be written without; this file only names it.
            "src/sys.rs" | "tests/allocations.rs" | "tests/socksd/layers.rs" => continue,
            "src/lib.rs" => {
                assert_eq!(text.matches("#[allow(unsafe_code, ").count(), 1, "in src/lib.rs");
                text = text.lines().filter(|line| !line.contains("(unsafe_code")).collect();
            }
            _ => {}
        }
        for word in ["unsafe", "unsafe_code"] {
            assert!(!has_word(&text, word), "{word} in {}", path.display());
        }
    }
}

#[test]
fn every_unsafe_block_says_why_it_is_safe() {
    let mut blocks = 0;
    for path in [vec!["src/sys.rs".into()], files("src/sys")].concat() {
        let text = read(&path);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (index, line) in lines.iter().enumerate() {
            if line.starts_with("//") || !line.contains("unsafe {") {
                continue;
            }
            let comment = lines[..index].iter().rev().take_while(|line| line.starts_with("// "));
            let says = comment.last().is_some_and(|first| first.starts_with("// SAFETY: "));
            let place = format!("{}:{}", path.display(), index + 1);
            assert!(says, "{place}: no SAFETY comment before {line}");
            blocks += 1;
        }
    }
    assert!(blocks > 10, "only {blocks} blocks found: this test has gone blind");
}

#[test]
fn the_tree_of_crates_is_socksd_and_getopts() {
    let lock = read("Cargo.lock");
    let names: Vec<&str> = lock.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
    assert_eq!(names, ["\"getopts\"", "\"socksd\""]);
}

#[test]
fn the_top_of_the_repository_holds_nothing_else() {
    let known = [
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "Makefile",
        "README.md",
        "man",
        "src",
        "tests",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // target/ is no part of the repository.
        let good = known.contains(&name.as_str()) || name.starts_with('.') || name == "target";
        assert!(good, "{name} has no place at the top");
    }
}

#[test]
fn the_changelog_opens_with_the_version_that_is_built() {
    let changelog = read("CHANGELOG.md");
    let (_, sections) = changelog.split_once("\n## ").expect("no section");
    let first = sections.split("\n## ").next().unwrap_or_default();
    assert!(first.contains(env!("CARGO_PKG_VERSION")), "{first}");
}
