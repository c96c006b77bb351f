//! The manual of the rules and the examples beside it: the server takes them, they decide as they
//! say, and the manual has every word and every message of the language.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output, Stdio};

use crate::common::{SOCKSD, TempFile, root};
use socksd::cli;

/// Runs socksd in the directory of the examples; it is to end by itself.
fn run(args: &[&str]) -> Output {
    let mut command = Command::new(SOCKSD);
    command.current_dir(root().join("man/examples")).args(args).stdin(Stdio::null());
    command.output().unwrap()
}

/// Asserts that `--check` finds nothing.
fn assert_good(args: &[&str]) {
    let output = run(&[args, &["--check"]].concat());
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "{args:?}");
}

/// A question, whether it is allowed, and what the answer has in it besides, if that is asked.
type Case = (&'static str, bool, &'static str);

/// Checks an example and asks it questions, among which there is one for each of its rules to
/// decide.
fn assert_decides(rules: &str, users: Option<&str>, cases: &[Case]) {
    let read = |name: &str| fs::read_to_string(root().join("man/examples").join(name)).unwrap();
    // In a checkout others may read it; at its place they must not.
    let users = users.map(|name| TempFile::new(&read(name)));
    let users: Vec<&str> = users.iter().flat_map(|file| ["--users", file.path()]).collect();
    let args = [&["--rules", rules], &users[..]].concat();
    assert_good(&args);
    assert!(cases.len() >= 8, "{rules}");
    let mut decided = BTreeSet::new();
    for &(question, allowed, expected) in cases {
        let output = run(&[&args[..], &["--explain", question]].concat());
        assert_eq!(output.stderr, b"", "{question}");
        let text = String::from_utf8(output.stdout).unwrap();
        let status = if allowed { 0 } else { 1 };
        assert_eq!(output.status.code(), Some(status), "{rules}: {question}\n{text}");
        assert!(text.contains(expected), "{rules}: {question}: no '{expected}' in\n{text}");
        let place = text.lines().find_map(|line| line.strip_suffix(": matches"));
        decided.extend(place.map(|rule| rule.split(": ").next().unwrap().to_owned()));
    }
    let text = read(rules);
    for (line, number) in text.lines().zip(1..) {
        if line.starts_with("allow") || line.starts_with("deny") {
            let place = format!("{rules}:{number}");
            assert!(decided.contains(&place), "no question is decided by {place}");
        }
    }
}

#[test]
fn home_lan_serves_the_lan_to_the_world_and_nothing_of_the_lan() {
    let cases = [
        ("from=192.168.1.2 to=www.example.org:443", true, "settings: none"),
        ("from=192.168.1.2 to=[2606:4700::1]:22", true, "methods: 00\n"),
        ("from=fd12:3456:789a:1::2 to=www.example.org:443", true, ""),
        ("from=fd12:3456:789a:2::2 to=www.example.org:443", false, "methods: none"),
        ("from=127.0.0.1 to=9.9.9.9:53 command=udp", true, ""),
        ("from=192.168.1.2 version=4 to=9.9.9.9:80", true, ""),
        ("from=192.168.1.2 version=4a to=www.example.org:80", true, ""),
        ("from=192.168.1.2 command=bind to=0.0.0.0:0 at=9.9.9.9", true, ""),
        ("from=192.168.1.2 command=bind to=0.0.0.0:0 at=192.168.1.3", false, "passed over: to\n"),
        ("from=192.168.1.2 to=192.168.1.1:80", false, "internal address not named by any rule"),
        ("from=192.168.1.2 to=rebound.example.org:80 at=192.168.1.1", false, ""),
        ("from=192.168.1.2 to=rebound.example.org:80 at=::ffff:127.0.0.1", false, ""),
        ("from=192.168.1.2 to=[2002:c0a8:101::1]:80", false, ""),
        ("from=192.168.1.2 to=0.0.0.7:80", false, "not the address of a host"),
        ("from=192.168.1.2 to=mail.example.org:25", false, ": deny port 25: matches"),
        ("from=192.168.1.40 to=9.9.9.9:53 command=udp", false, "methods: none"),
        ("from=192.168.1.49 version=4 to=9.9.9.9:80", false, "192.168.1.40-192.168.1.49: matches"),
        ("from=192.168.1.50 to=9.9.9.9:80", true, ""),
        ("from=192.168.2.9 to=www.example.org:443", true, "max-per-client 64 rate 1000000\n"),
        ("from=192.168.2.9 to=www.example.org:22", false, "passed over: port\n"),
        ("from=192.168.2.9 command=udp to=9.9.9.9:443", false, "passed over: command\n"),
        ("from=192.168.2.9 to=192.168.1.2:80", false, ""),
        ("from=9.9.9.9 to=www.example.org:443", false, ""),
    ];
    assert_decides("home-lan.rules", None, &cases);
}

#[test]
fn office_tells_staff_contractors_and_administrators_apart() {
    let cases = [
        ("from=9.8.7.6 user=alice to=www.example.org:443", true, "methods: 02\n"),
        ("from=9.8.7.6 user=alice to=www.example.org:443", true, "idle 3600\n"),
        ("from=9.8.7.6 user=alice command=udp to=9.9.9.9:53", true, "rate-user 5000000"),
        ("from=9.8.7.6 user=alice command=bind to=9.9.9.9:0", false, "passed over: command\n"),
        ("from=10.20.1.1 user=alice to=10.20.3.7:80", true, "to 10.20.0.0/16 idle 3600: matches"),
        ("from=10.20.1.1 user=alice to=wiki.example.com:80 at=10.20.3.9", true, ""),
        ("from=10.20.1.1 user=alice to=10.20.3.7:53 command=udp", false, ""),
        ("from=10.20.1.1 user=alice to=10.20.255.1:22", false, "to 10.20.255.0/24: matches"),
        ("from=10.20.1.1 user=alice to=[64:ff9b::a14:ff01]:22", false, "/24: matches"),
        (
            "from=10.20.1.1 user=alice to=[64:ff9b::a14:307]:22",
            false,
            "internal address not named by any rule",
        ),
        ("from=10.20.1.1 user=alice to=10.21.0.1:22", false, ""),
        ("from=10.20.1.1 user=alice to=127.0.0.1:22", false, ""),
        ("from=10.20.1.1 user=alice to=mail.example.org:25", false, ": deny port 25: matches"),
        ("from=10.20.1.1 user=alice to=mail.example.com:25 at=10.20.0.25", true, ""),
        ("from=9.8.7.6 user=bob to=10.20.255.1:22", true, "settings: log verbose\n"),
        ("from=9.8.7.6 user=bob to=127.0.0.1:25", true, ""),
        ("from=10.20.1.1 user=carol to=git.example.com:443", true, "max-per-client 8\n"),
        ("from=10.20.1.1 user=carol to=GIT.example.com.:22", true, ""),
        ("from=9.8.7.6 user=carol to=git.example.com:443", false, "@contractors: matches"),
        ("from=10.20.1.1 user=carol to=git.example.com:443 at=10.20.3.8", false, ""),
        ("from=10.20.1.1 user=carol to=x.git.example.com:443", false, ""),
        ("from=10.20.1.1 user=carol to=10.20.3.7:22", true, ""),
        ("from=10.20.1.1 user=carol to=build.example.com:22 at=10.20.3.7", true, ""),
        ("from=10.20.1.1 user=carol to=10.20.3.7:80", false, ""),
        ("from=10.20.1.1 user=carol to=www.example.org:443", false, ""),
        ("from=10.20.1.1 user=dave to=www.example.org:443", false, "locked"),
        ("from=10.20.1.1 user=mallory to=www.example.org:443", false, "unknown"),
        ("from=10.20.1.1 to=www.example.org:443", false, "no acceptable method"),
        ("from=10.20.1.1 version=4 user=bob to=9.9.9.9:80", false, "no rule allows this"),
        ("from=10.20.1.1 version=4a user=alice to=www.example.org:80", false, ""),
    ];
    assert_decides("office.rules", Some("office.users"), &cases);
}

#[test]
fn socks4_ident_serves_whom_the_hosts_name() {
    let cases = [
        ("from=10.1.0.5 version=4 user=alice ident=alice to=9.9.9.9:22", true, "asked, alice\n"),
        ("from=10.1.0.5 version=4a user=bob ident=bob to=www.example.org:22", true, ""),
        ("from=10.1.0.5 version=4 command=bind user=bob ident=bob to=9.9.9.9:0", true, ""),
        ("from=10.1.0.5 version=4 user=alice ident=bob to=9.9.9.9:22", false, "names another"),
        ("from=10.1.0.5 version=4 user=alice to=9.9.9.9:22", false, "IDENT proves nothing"),
        ("from=10.1.0.5 version=4 ident=alice to=9.9.9.9:22", false, "names another"),
        ("from=10.1.0.5 version=4 user=carol ident=carol to=9.9.9.9:443", true, ""),
        ("from=10.1.0.5 version=4 user=carol ident=carol to=9.9.9.9:22", false, "no rule"),
        ("from=10.1.0.5 version=4 user=carol ident=carol command=bind to=9.9.9.9:80", false, ""),
        ("from=10.1.0.5 version=4 user=erin ident=erin to=9.9.9.9:80", false, "no rule"),
        ("from=10.1.0.5 version=4 user=root ident=root to=9.9.9.9:80", false, "root,daemon,nobody"),
        ("from=10.1.0.5 version=4 user=alice ident=alice to=10.9.0.1:22", false, ""),
        ("from=10.1.0.5 version=4a user=bob ident=bob to=a.example:80 at=10.9.0.1", false, ""),
        ("from=10.1.1.7 version=4a user=erin ident=erin to=www.example.org:80", true, "2000000\n"),
        ("from=10.1.1.7 version=4 user=nobody ident=nobody to=9.9.9.9:80", false, ": matches"),
        ("from=10.1.1.7 version=5 ident=erin to=9.9.9.9:80", false, "methods: none"),
        ("from=10.1.0.5 ident=backup to=10.9.0.1:22", true, "methods: 00\nident: asked, backup\n"),
        ("from=10.1.0.5 ident=backup to=store.example.com:22 at=10.9.0.1", true, ""),
        ("from=10.1.0.5 ident=backup to=10.9.0.2:22", false, ""),
        ("from=10.1.0.5 ident=alice to=10.9.0.1:22", false, ""),
        ("from=10.1.0.5 to=10.9.0.1:22", false, "IDENT proves nothing"),
        ("from=10.2.0.1 version=4 user=alice ident=alice to=9.9.9.9:80", false, "no rule"),
    ];
    assert_decides("socks4-ident.rules", None, &cases);
    let elsewhere = run(&[
        "--rules",
        "socks4-ident.rules",
        "--explain",
        "from=10.2.0.1 version=4 user=alice ident=alice to=9.9.9.9:80",
    ]);
    assert!(!String::from_utf8(elsewhere.stdout).unwrap().contains("ident: asked"));
}

#[test]
fn public_wants_a_password_and_keeps_the_blocked_out() {
    let cases = [
        ("from=9.8.7.6 user=alice to=www.example.org:443", true, "methods: 02\n"),
        ("from=9.8.7.6 user=alice to=www.example.org:443", true, "rate-user 10000000 idle 1800\n"),
        ("from=2606:4700::9 user=alice to=[2606:4700::1]:22", true, ""),
        ("from=9.8.7.6 user=alice command=udp to=9.9.9.9:53", true, "max-per-client 5"),
        ("from=9.8.7.6 user=alice command=udp to=9.9.9.9:123", false, "no rule allows this"),
        ("from=9.8.7.6 user=alice command=bind to=9.9.9.9:0", false, "no rule allows this"),
        ("from=9.8.7.6 to=www.example.org:443", false, "no acceptable method"),
        ("from=9.8.7.6 version=4 user=alice to=9.9.9.9:80", false, ""),
        ("from=192.0.2.77 user=alice to=www.example.org:443", false, "methods: none"),
        ("from=203.0.113.20 version=4 user=alice to=9.9.9.9:80", false, "blocked log no: matches"),
        ("from=2001:db8:bad::9 user=alice to=www.example.org:443", false, "no acceptable method"),
        ("from=9.8.7.6 user=alice to=malware.example:443", false, "to list:blocked: matches"),
        ("from=9.8.7.6 user=alice to=not.malware.example:443", true, ""),
        ("from=9.8.7.6 user=alice to=tracker.example:443", false, "to list:blocked: matches"),
        ("from=9.8.7.6 user=alice to=A.B.Tracker.Example.:443", false, "to list:blocked: matches"),
        ("from=9.8.7.6 user=alice to=nottracker.example:443", true, ""),
        ("from=9.8.7.6 user=alice to=a.example:443 at=203.0.113.9", false, "list:blocked: matches"),
        ("from=9.8.7.6 user=alice to=[64:ff9b::c000:209]:443", false, "list:blocked: matches"),
        (
            "from=9.8.7.6 user=alice to=10.0.0.1:443",
            false,
            "internal address not named by any rule",
        ),
        ("from=9.8.7.6 user=alice to=rebound.example.org:443 at=169.254.169.254", false, ""),
        ("from=9.8.7.6 user=alice to=mail.example.org:25", false, "25,135-139,445: matches"),
        ("from=9.8.7.6 user=guest to=www.example.org:80", true, "max-sessions 100"),
        ("from=9.8.7.6 user=guest to=www.example.org:22", false, "deny user guest: matches"),
        ("from=9.8.7.6 user=guest command=udp to=9.9.9.9:53", false, "deny user guest: matches"),
    ];
    let hash = "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1";
    let users = TempFile::new(&format!("alice:{hash}\nguest:{hash}\n"));
    assert_decides("public.rules", Some(users.path()), &cases);
}

#[test]
fn five_hosts_has_these_five_hosts_only() {
    let cases = [
        ("from=192.168.1.2 to=www.example.org:443", true, "methods: 00\n"),
        ("from=192.168.1.2 to=API.example.org.:443", true, ""),
        ("from=192.168.1.2 version=4a to=www.example.org:443", true, ""),
        ("from=fd00::2 to=ftp.example.net:21", true, ""),
        ("from=127.0.0.1 to=ftp.example.net:50000", true, ""),
        ("from=192.168.1.2 to=[2001:db8:25::25]:587", true, ""),
        ("from=192.168.1.2 to=mail.example.org:25 at=2001:db8:25::25", true, ""),
        ("from=192.168.1.2 version=4 to=10.0.0.5:5432", true, ""),
        ("from=192.168.1.2 to=db.example.org:5432 at=10.0.0.5", true, "to 10.0.0.5 port 5432: m"),
        (
            "from=192.168.1.2 to=[64:ff9b::a00:5]:5432",
            false,
            "internal address not named by any rule",
        ),
        ("from=192.168.1.2 to=10.0.0.6:5432", false, ""),
        ("from=192.168.1.2 to=10.0.0.5:22", false, ""),
        ("from=192.168.1.2 to=www.example.org:80", false, ""),
        ("from=192.168.1.2 to=www.example.org:443 at=10.0.0.5", false, ""),
        ("from=192.168.1.2 to=x.www.example.org:443", false, "no rule allows this"),
        ("from=192.168.1.2 to=9.9.9.9:443", false, ""),
        ("from=192.168.1.2 command=bind to=ftp.example.net:20", false, ""),
        ("from=192.168.1.2 command=udp to=www.example.org:443", false, ""),
        ("from=9.8.7.6 to=www.example.org:443", false, "methods: none"),
    ];
    assert_decides("five-hosts.rules", None, &cases);
}

// The manual.

fn manual() -> String {
    fs::read_to_string(root().join("man/socksd.rules.5")).unwrap()
}

/// What stands between the heading `title`, `.Sh` or `.Ss`, and the next one of its kind or above.
fn section(title: &str) -> String {
    let manual = manual();
    let (heading, next): (_, &[&str]) = if manual.contains(&format!("\n.Sh {title}\n")) {
        (format!(".Sh {title}"), &[".Sh "])
    } else {
        (format!(".Ss {title}"), &[".Sh ", ".Ss "])
    };
    let mut lines = manual.lines().skip_while(|line| *line != heading);
    lines.next().unwrap_or_else(|| panic!("the manual has no {title}"));
    let ends = |line: &&str| next.iter().any(|next| line.starts_with(next));
    lines.take_while(|line| !ends(line)).collect::<Vec<_>>().join("\n")
}

/// Text as a reader sees it.
fn plain(text: &str) -> String {
    text.replace("\\&", "").replace("\\-", "-").replace("\\(dq", "\"").replace("\\e", "\\")
}

/// The literal blocks of a section.
fn blocks(section: &str) -> Vec<String> {
    let blocks = section.split(".Bd -literal").skip(1).map(|rest| {
        let (_, block) = rest.split_once('\n').unwrap();
        plain(block.split("\n.Ed").next().unwrap()) + "\n"
    });
    blocks.collect()
}

/// All string literals of a source file without its tests and comments.
fn literals(file: &str) -> Vec<String> {
    let source = fs::read_to_string(root().join(file)).unwrap();
    let code = source.split("#[cfg(test)]").next().unwrap();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let code: Vec<char> =
        code.lines().filter(is_code).flat_map(|line| line.chars().chain(['\n'])).collect();
    let (mut literals, mut at) = (Vec::new(), 0);
    while at < code.len() {
        match code[at..] {
            // A character, which may be a quote.
            ['\'', '\\', _, '\'', ..] => at += 4,
            ['\'', _, '\'', ..] => at += 3,
            ['"', ..] => {
                let mut literal = String::new();
                at += 1;
                loop {
                    match code[at..] {
                        ['"', ..] => break,
                        // The literal goes on behind the white space of the next line.
                        ['\\', '\n', ..] => {
                            at +=
                                1 + code[at + 1..].iter().take_while(|c| c.is_whitespace()).count();
                        }
                        ['\\', c, ..] => {
                            literal.push(c);
                            at += 2;
                        }
                        [c, ..] => {
                            literal.push(c);
                            at += 1;
                        }
                        [] => panic!("{file}: a string without an end"),
                    }
                }
                literals.push(literal);
                at += 1;
            }
            _ => at += 1,
        }
    }
    assert!(literals.len() > 10, "{file}: this test has gone blind");
    literals
}

/// The words of a list such as "one, two or three".
fn enumerated(text: &str) -> Vec<String> {
    text.replace(" or ", ", ").split(", ").map(str::to_owned).collect()
}

/// The words that the entries of a section begin with.
fn entries(title: &str) -> Vec<String> {
    let section = section(title);
    let entries = section.lines().filter_map(|line| line.strip_prefix(".It Cm "));
    entries.map(|entry| entry.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn the_manual_has_every_word_of_the_language() {
    let parser = literals("src/policy/parse.rs");
    let list =
        |begin: &str| enumerated(parser.iter().find(|text| text.starts_with(begin)).unwrap());
    assert_eq!(entries("Statements"), list("allow, "));
    assert_eq!([entries("Conditions"), entries("Settings")].concat(), list("version, "));

    let sets = fs::read_to_string(root().join("src/policy/nets.rs")).unwrap();
    let sets = sets.split("const fn word(").nth(1).unwrap().split("\n    }\n").next().unwrap();
    let sets: Vec<&str> = sets.split('"').skip(1).step_by(2).collect();
    assert_eq!(entries("Sets of addresses"), sets);

    let manual = manual();
    let known: BTreeSet<&str> = manual
        .lines()
        .filter(|line| line.starts_with(".Cm ") || line.starts_with(".It Cm "))
        .flat_map(str::split_whitespace)
        .collect();
    let words = parser.iter().map(|word| word.trim_end_matches(':'));
    let is_word = |word: &&str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let words: Vec<&str> = words.filter(is_word).collect();
    for word in ["4a", "udp", "any", "verbose", "list"] {
        assert!(words.contains(&word), "{word}: this test has gone blind");
    }
    for word in words {
        assert!(known.contains(word), "not in the manual: {word}");
    }
}

#[test]
fn the_examples_of_the_manual_are_taken() {
    let users = TempFile::alice();
    let lists = blocks(&section("Lists"));
    let [list] = &lists[..] else { panic!("{lists:?}") };
    let list = TempFile::new(list);
    let mut checked = 0;
    for block in blocks(&section("EXAMPLES")) {
        let commands = block.replace("\\\n", "");
        let Some(command) = commands.strip_prefix("$ socksd ") else {
            let named = format!("list blocked {}", list.path());
            let rules = TempFile::new(&block.replace("list blocked blocked", &named));
            assert_good(&["--rules", rules.path(), "--users", users.path()]);
            checked += 1;
            continue;
        };
        // What stands in quotes is one word.
        let mut args: Vec<String> = Vec::new();
        for (index, part) in command.split('\'').enumerate() {
            if index % 2 == 1 {
                args.push(part.to_owned());
            } else {
                args.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        let action = cli::parse(&args);
        assert!(action.is_ok(), "{command}: {action:?}");
    }
    // So are the rules within the text.
    let manual = manual();
    for line in manual.lines().filter(|line| line.starts_with(".Ql ") || line.starts_with(".Dl ")) {
        let rule = plain(line[4..].trim_end_matches([' ', ',', ';', ':', '.']));
        if rule.starts_with("allow") || rule.starts_with("deny") {
            assert_good(&["--rule", &rule, "--users", users.path()]);
            checked += 1;
        }
    }
    assert!(checked >= 12, "{checked}: this test has gone blind");
}

/// One thing wrong with each statement.
const WRONG_RULES: &str = r#"
allow to host!name
allow to hôst
allow user "alice
allow user "bö"
allow user "\n"
allow user "\xg0"
permit
include
list a/b file
list a
include one two
list twice /dev/null
list twice /dev/null
include /nonexistent
allow everything
allow port 1 port 2
allow version 6
allow command ping
allow user @
allow from host
allow to
allow to !!any
allow to list:unknown
allow port 9-5
allow max-sessions 0
allow rate 0
allow idle 2592001
allow source ::
allow log all
deny rate 1
allow to 10.0.0.0.1
allow to fe80::1%eth0
allow to 10.0.0.0/33
allow to 10.0.0.1/8
allow to 10.0.0.1-::1
allow to 10.0.0.2-10.0.0.1
allow to ho$t
allow to host.0x1
"#;

/// Whether `text` is what `pattern` says, in which words in capitals stand for anything.
fn is_like(text: &str, pattern: &str) -> bool {
    let pieces: Vec<&str> = pattern.split(|c: char| c.is_ascii_uppercase()).collect();
    let [first, middle @ .., last] = &pieces[..] else { return text == pattern };
    let rest = middle.iter().try_fold(text.strip_prefix(first), |rest, piece| {
        rest.map(|rest| rest.split_once(piece).map(|(_, rest)| rest))
    });
    rest.flatten().is_some_and(|rest| rest.ends_with(last))
}

#[test]
fn every_message_about_rules_is_in_the_manual_and_the_other_way_round() {
    let diagnostics = section("DIAGNOSTICS");
    let known: Vec<String> =
        diagnostics.lines().filter_map(|line| line.strip_prefix(".It ")).map(plain).collect();

    let wrong = TempFile::new("");
    let entries = TempFile::new(&("host host\n".to_owned() + &"$\n".repeat(101)));
    // Each includes the one made before it.
    let mut chain = vec![TempFile::new("")];
    for _ in 0..16 {
        chain.push(TempFile::new(&format!("include {}\n", chain.last().unwrap().path())));
    }
    let text = format!(
        "{WRONG_RULES}include {}\nlist entries {}\ninclude {}\n",
        wrong.path(),
        entries.path(),
        chain.last().unwrap().path()
    );
    fs::write(&wrong.0, text).unwrap();
    let mut told = BTreeSet::new();
    for args in [["--rules", wrong.path()], ["--rules", "/nonexistent"], ["--rule", "allow user a"]]
    {
        let output = run(&[&args[..], &["--check"]].concat());
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(100), &b""[..]), "{args:?}");
        for line in String::from_utf8(output.stderr).unwrap().lines() {
            let message = line.strip_prefix("socksd: ").unwrap_or_else(|| panic!("{line}"));
            let forms = |pattern: &&String| {
                ["", ", found WORD", " after this"]
                    .iter()
                    .any(|end| is_like(message, &format!("{pattern}{end}")))
            };
            let patterns: Vec<_> = known.iter().filter(forms).collect();
            assert!(!patterns.is_empty(), "not in the manual: {message}");
            told.extend(patterns);
        }
    }
    for pattern in &known {
        let untold = pattern.contains("4 GiB");
        assert!(untold || told.contains(pattern), "in the manual and never told: {pattern}");
    }

    // And what no file here has brought about.
    let text = plain(&diagnostics).replace('\n', " ");
    for file in
        ["src/policy/words.rs", "src/policy/parse.rs", "src/policy/list.rs", "src/policy/nets.rs"]
    {
        for literal in literals(file) {
            // In rules and lists, such a name is taken for a mistyped address before.
            let never = literal == "a name that does not end in a number";
            let message = format!("FILE:1:1: {literal}");
            if never || known.iter().any(|pattern| is_like(&message, pattern)) {
                continue;
            }
            // What stands between braces is put in.
            for part in literal.split('{') {
                let piece = part.split_once('}').map_or(part, |(_, piece)| piece);
                if piece.split_whitespace().count() >= 2 {
                    assert!(text.contains(piece.trim()), "{file}: not in the manual: {literal}");
                }
            }
        }
    }
}
