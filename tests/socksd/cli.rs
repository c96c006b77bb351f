//! The face: which options, messages, exit statuses and log lines there are, and that the manual
//! tells of exactly these.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use crate::common::{
    HELLO, SOCKSD, SOON, Server, Target, TempFile, assert_ends_silently, connect, eventually,
    field, json, read, read_to_end, refusing_port, reply5, request5, root, tunnel,
};
use socksd::cli::options::{NUMBERS, OPTIONS};
use socksd::cli::{self, Action};

/// What stands in the manual between the heading `title`, `.Sh` or `.Ss`, and the next heading.
fn section(title: &str) -> String {
    section_of("man/socksd.8", title)
}

/// The same of any page.
fn section_of(page: &str, title: &str) -> String {
    let manual = fs::read_to_string(root().join(page)).unwrap();
    let heading = |line: &str| line.strip_prefix(".Sh ").or(line.strip_prefix(".Ss ")).is_some();
    let mut lines = manual.lines().skip_while(|line| !(heading(line) && line.ends_with(title)));
    lines.next().unwrap_or_else(|| panic!("the manual has no {title}"));
    lines.take_while(|line| !heading(line)).collect::<Vec<_>>().join("\n")
}

/// The lists of a section: for each item what stands behind `.It`, and its lines joined by blanks.
/// A list within an item is part of it.
fn lists(section: &str) -> Vec<Vec<(String, String)>> {
    let mut lists: Vec<Vec<(String, String)>> = Vec::new();
    let mut depth = 0;
    for line in section.lines() {
        if line.starts_with(".Bl ") {
            depth += 1;
            if depth == 1 {
                lists.push(Vec::new());
                continue;
            }
        } else if line == ".El" {
            depth -= 1;
        }
        if depth == 0 {
            continue;
        }
        let list = lists.last_mut().unwrap();
        match line.strip_prefix(".It ") {
            Some(head) if depth == 1 => list.push((head.to_owned(), String::new())),
            _ => list.last_mut().unwrap().1.extend([line, " "]),
        }
    }
    lists
}

/// The first list of a section.
fn list(title: &str) -> Vec<(String, String)> {
    lists(&section(title)).remove(0)
}

/// An option as the manual or the table has it. Options go by letter, or by name without one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    folded: String,
    key: String,
    short: String,
    long: String,
    takes_argument: bool,
}

impl Known {
    fn new(short: &str, long: &str, takes_argument: bool) -> Self {
        let key = if short.is_empty() { long } else { short };
        Self {
            folded: key.to_lowercase(),
            key: key.into(),
            short: short.into(),
            long: long.into(),
            takes_argument,
        }
    }
}

/// The options of the two tables, sorted.
fn in_table() -> Vec<Known> {
    let options =
        OPTIONS.iter().map(|opt| Known::new(opt.short, opt.long, !opt.argument.is_empty()));
    let numbers = NUMBERS.iter().map(|number| Known::new("", number.long, true));
    let mut known: Vec<Known> = options.chain(numbers).collect();
    known.sort();
    known
}

/// The options of the manual in its order, each with the name of its argument and its text.
fn in_manual() -> Vec<(Known, String, String)> {
    let items = list("DESCRIPTION").into_iter().map(|(head, body)| {
        let (mut short, mut long, mut arguments) = ("", "", BTreeSet::new());
        for form in head.split(" , ") {
            let (option, argument) = form.split_once(" Ar ").unwrap_or((form, ""));
            match option.strip_prefix("Fl Fl ") {
                Some(name) => long = name,
                None => short = option.strip_prefix("Fl ").unwrap_or_else(|| panic!("{head}?")),
            }
            arguments.insert(argument);
        }
        assert_eq!(arguments.len(), 1, "{head}: both forms take the same argument");
        let argument = arguments.pop_first().unwrap();
        (Known::new(short, long, !argument.is_empty()), argument.to_owned(), body)
    });
    items.collect()
}

#[test]
fn the_manual_has_the_options_of_the_table_sorted() {
    let manual: Vec<Known> = in_manual().into_iter().map(|(known, ..)| known).collect();
    assert_eq!(manual, in_table());
}

#[test]
fn the_synopsis_has_the_options_of_the_manual_sorted() {
    let (flags, others): (Vec<_>, Vec<_>) = in_manual()
        .into_iter()
        .partition(|(known, ..)| !known.short.is_empty() && !known.takes_argument);
    let flags: String = flags.into_iter().map(|(known, ..)| known.short).collect();
    let mut expected = vec![".Nm socksd".to_owned(), format!(".Op Fl {flags}")];
    for (Known { short, long, takes_argument, .. }, argument, _) in others {
        let name = if short.is_empty() { format!("Fl {long}") } else { short };
        let argument = if takes_argument { format!(" Ar {argument}") } else { String::new() };
        expected.push(format!(".Op Fl {name}{argument}"));
    }
    assert_eq!(section("SYNOPSIS").lines().collect::<Vec<_>>(), expected);
}

#[test]
fn the_manual_gives_unit_range_and_default_of_every_number() {
    for number in NUMBERS {
        let (_, argument, body) =
            in_manual().into_iter().find(|(known, ..)| known.long == number.long).unwrap();
        assert_eq!(argument, number.unit);
        let (min, max) = (number.range.start(), number.range.end());
        let text = format!("{min} to {max} {}; the default is {}.", number.unit, number.default);
        assert!(body.contains(&text), "--{}: no '{text}' in: {body}", number.long);
    }
}

#[test]
fn the_help_has_the_options_of_the_table() {
    let help = text(&run(&["--help"]).stdout);
    let forms: BTreeSet<String> = help
        .lines()
        .filter(|line| line.starts_with("    -") || line.starts_with("        --"))
        .map(|line| {
            // Behind the forms stands the argument, in capitals, and then text.
            let form = |word: &&str| word.starts_with('-') || !word.contains(char::is_lowercase);
            line.split_whitespace().take_while(form).collect::<Vec<_>>().join(" ")
        })
        .collect();
    let options = OPTIONS.iter().map(|opt| match (opt.short, opt.argument) {
        ("", "") => format!("--{}", opt.long),
        ("", argument) => format!("--{} {argument}", opt.long),
        (short, "") => format!("-{short}, --{}", opt.long),
        (short, argument) => format!("-{short}, --{} {argument}", opt.long),
    });
    let numbers =
        NUMBERS.iter().map(|number| format!("--{} {}", number.long, number.unit.to_uppercase()));
    assert_eq!(forms, options.chain(numbers).collect());
}

#[test]
fn the_examples_of_the_manual_are_taken() {
    let examples = section("EXAMPLES").replace("\\e\n", "");
    let commands: Vec<&str> = examples
        .lines()
        .filter_map(|line| line.trim_start_matches(".Dl ").strip_prefix("$ socksd"))
        .collect();
    assert!(commands.len() >= 4, "{commands:?}");
    for command in commands {
        // What stands between single quotes is one word.
        let args = command.split('\'').zip([false, true].into_iter().cycle());
        let args: Vec<&str> = args
            .flat_map(|(part, quoted)| match quoted {
                true => vec![part],
                false => part.split_whitespace().collect(),
            })
            .collect();
        let action = cli::parse(&args);
        let good = matches!(action, Ok(Action::Run(_) | Action::Explain(..)));
        assert!(good, "socksd{command}: {action:?}");
    }
}

// What the program says and how it ends.

fn text(octets: &[u8]) -> String {
    String::from_utf8(octets.to_vec()).unwrap()
}

/// Runs socksd, which is to end by itself.
fn run(args: &[impl AsRef<OsStr>]) -> Output {
    Command::new(SOCKSD).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs socksd, which is to fail, and returns the exit status and what it wrote to standard error.
fn failure(args: &[impl AsRef<OsStr>]) -> (Option<i32>, String) {
    let output = run(args);
    assert_eq!(text(&output.stdout), "");
    (output.status.code(), text(&output.stderr))
}

/// Whether `text` is what `pattern` says, in which words in capitals stand for anything.
fn is_like(text: &str, pattern: &str) -> bool {
    let is_capital = |c: char| c.is_ascii_uppercase();
    match pattern.find(is_capital) {
        None => text == pattern,
        Some(at) => {
            let rest = pattern[at..].trim_start_matches(is_capital);
            let Some(text) = text.strip_prefix(&pattern[..at]) else { return false };
            (0..=text.len()).any(|len| text.is_char_boundary(len) && is_like(&text[len..], rest))
        }
    }
}

const NOT_UTF_8: &str = "argument '--log=\\xff' is not UTF-8";

/// A users file with one thing wrong in each line.
const WRONG_USERS: &str = "\
# a comment, and an empty line, are fine

alice
:$6$saltsalt$hash
bob:plain
carol:!
carol:!
dave:$2b$99$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuuabcdefghi
erin:!:2025-02-29
frank:!::staff,
grace:!:::
";

#[test]
fn every_message_before_the_start_is_in_the_manual_and_the_other_way_round() {
    let lists: Vec<Vec<String>> = lists(&section("Messages before the start"))
        .into_iter()
        .map(|list| list.into_iter().map(|(head, _)| head.replace("\\-", "-")).collect())
        .collect();
    let [usage, users, _hash, _inherited, user, system, warnings] = &lists[..] else {
        panic!("{lists:?}")
    };
    let wrong = TempFile::new(&format!("{WRONG_USERS}{}:!\n", "n".repeat(256)));
    let open = TempFile::new("");
    fs::set_permissions(&open.0, fs::Permissions::from_mode(0o644)).unwrap();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap().to_string();
    let cases: [(&[&str], &Vec<String>, i32); 47] = [
        (&["--nonsense"], usage, 100),
        (&["-x"], usage, 100),
        (&["--listen"], usage, 100),
        (&["--quiet=1"], usage, 100),
        (&["--log", "a", "--log", "b"], usage, 100),
        (&["-4", "-6"], usage, 100),
        (&["-q", "-v"], usage, 100),
        (&["--log", "a", "--syslog", "user"], usage, 100),
        (&["--log-format", "xml"], usage, 100),
        (&["--ready-fd", "2"], usage, 100),
        (&["--syslog", "kern"], usage, 100),
        (&["operand"], usage, 100),
        (&["--resolvers", "0"], usage, 100),
        (&["--source", "localhost"], usage, 100),
        (&["--source", "::"], usage, 100),
        (&["--advertise", "::1", "--advertise", "::2"], usage, 100),
        (&["--inetd", "--listen", "1080"], usage, 100),
        (&["--unix-mode", "rw"], usage, 100),
        (&["--proxy-protocol", "10.0.0.1,balancer"], usage, 100),
        (&["--user", "nobody:"], usage, 100),
        (&["--listen", "localhost:1080"], usage, 100),
        (&["--port-range", "9-5"], usage, 100),
        (&["--early-drop", "9-5"], usage, 100),
        (&["--metrics", "9180"], usage, 100),
        (&["--metrics", "192.0.2.1:9180"], usage, 100),
        (&["--explain", "from"], usage, 100),
        (&["--explain", "from=192.0.2.1"], usage, 100),
        (&["--explain", "from=192.0.2.1 from=192.0.2.1"], usage, 100),
        (&["--explain", "from=::1 to=::1:80"], usage, 100),
        (&["--explain", "from=::1 version=4 command=udp to=a:1"], usage, 100),
        (&["--explain", "from=::1 version=4 to=a:1"], usage, 100),
        (&["--explain", "from=::1 version=4 to=[::1]:1"], usage, 100),
        (&["--explain", "from=::1 to=192.0.2.1:1 at=192.0.2.1"], usage, 100),
        (&["--users", wrong.path()], users, 100),
        (&["--users", open.path()], users, 100),
        (&["--users", "/nonexistent"], users, 100),
        (&["--users", "/"], users, 100),
        (&["--user", "no-such"], user, 100),
        (&["--user", "nobody:no-such"], user, 100),
        (&["--user", "4000000000"], user, 100),
        (&["--user", "root"], user, 100),
        (&["--chroot", "/nonexistent", "--listen", "127.0.0.1:0"], system, 111),
        (&["--log", "/nonexistent/log"], system, 111),
        (&["--listen", "127.0.0.1:0", "--pid-file", "/nonexistent/pid"], system, 111),
        (&["--listen", "127.0.0.1:0", "--pid-file", "/"], system, 111),
        (&["--ready-fd", "999"], system, 111),
        (&["--listen", &busy], system, 111),
    ];
    // Another test makes socksd tell this one.
    let mut told: BTreeSet<_> = usage.iter().filter(|line| is_like(NOT_UTF_8, line)).collect();
    for (args, list, status) in cases {
        let (code, stderr) = failure(args);
        assert_eq!(code, Some(status), "{args:?}: {stderr}");
        let points = stderr.ends_with("\nTry 'socksd --help'.\n");
        assert_eq!(points, std::ptr::eq(list, usage), "{args:?}: {stderr}");
        for line in stderr.lines().filter(|line| !line.starts_with("Try ")) {
            let message = line.strip_prefix("socksd: ").unwrap_or_else(|| panic!("{line}"));
            let patterns: Vec<_> =
                list.iter().filter(|pattern| is_like(message, pattern)).collect();
            assert!(!patterns.is_empty(), "not in the manual: {message}");
            told.extend(patterns);
        }
    }
    for pattern in usage.iter().chain(users).chain(user) {
        assert!(told.contains(pattern), "in the manual and never told: {pattern}");
    }
    // Most of these cannot be brought about from outside.
    let mut in_source =
        literals(&["src/main.rs", "src/start.rs", "src/hash.rs"], "StartError::system(\"");
    let with_operands = [
        "open FILE",
        "write FILE",
        "listen on ADDRESS",
        "look up USER",
        "change the root directory to DIRECTORY",
        "change to user USER",
    ];
    in_source.extend(with_operands.map(str::to_owned));
    let in_manual = system.iter().map(|pattern| {
        pattern.strip_prefix("cannot ").unwrap().strip_suffix(": REASON").unwrap().to_owned()
    });
    assert_eq!(in_manual.collect::<BTreeSet<_>>(), in_source);
    let told = ["a reload will fail: MESSAGE", "cannot confine the server to its files: REASON"];
    assert_eq!(*warnings, told);
}

/// The string literals that stand behind `marker`, which ends in their opening quote, in the code
/// of `files` without their tests.
fn literals(files: &[&str], marker: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        // As if every call stood in one line.
        let code = code
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .replace("( ", "(")
            .replace(" .", ".");
        let literals = code.split(marker).skip(1);
        found.extend(literals.map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    assert!(!found.is_empty(), "{marker}: this test has gone blind");
    found
}

#[test]
fn a_users_file_that_others_may_read_is_refused_with_the_cure() {
    let users = TempFile::alice();
    let path = users.path();
    for mode in [0o644, 0o640, 0o604, 0o620, 0o601] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let (status, stderr) = failure(&["--users", path]);
        assert_eq!(status, Some(100));
        let expected =
            format!("socksd: {path} is readable by others (mode {mode:04o}): chmod 600 {path}\n");
        assert_eq!(stderr, expected);
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
    Server::start(&["--users", path]);
}

#[test]
fn everything_wrong_with_a_users_file_is_told_at_once_with_its_line() {
    let users = TempFile::new(WRONG_USERS);
    let path = users.path();
    let (status, stderr) = failure(&["--users", path]);
    assert_eq!(status, Some(100));
    let lines: Vec<&str> = stderr.lines().collect();
    let starts = [
        format!("socksd: {path}:3: expected name:hash"),
        format!("socksd: {path}:4: the name before ':' is empty"),
        format!("socksd: {path}:5: user bob: expected a whole hash"),
        format!("socksd: {path}:7: duplicate user carol"),
        format!("socksd: {path}:8: this system's crypt(3) cannot compute this $2b$99$ hash"),
        format!("socksd: {path}:9: user erin: expected an expiry date"),
        format!("socksd: {path}:10: user frank: expected groups"),
        format!("socksd: {path}:11: expected name:hash"),
    ];
    assert_eq!(lines.len(), starts.len(), "{stderr}");
    for (line, start) in lines.iter().zip(&starts) {
        assert!(line.starts_with(start.as_str()), "{line}\n{start}");
    }
    assert!(!stderr.contains("plain") && !stderr.contains("saltsalt"), "a hash shows: {stderr}");
}

#[test]
fn a_users_file_that_cannot_be_read_is_told_with_the_reason() {
    let (status, stderr) = failure(&["--users", "/nonexistent"]);
    assert_eq!(status, Some(100));
    let expected = "socksd: cannot read /nonexistent: No such file or directory (os error 2)\n";
    assert_eq!(stderr, expected);
}

/// What a program prints that is given a password on standard input.
fn hash(words: &[&str], password: &str) -> String {
    let command = words.join(" ");
    let program = if words[0] == "socksd" { SOCKSD } else { words[0] };
    let mut child = Command::new(program)
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command}: {error}"));
    writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}");
    text(&output.stdout).trim_end().to_owned()
}

#[test]
fn the_commands_of_the_manual_make_hashes_that_let_their_users_in() {
    let examples = section_of("man/socksd.users.5", "EXAMPLES");
    let mut content = String::from("# made by a test\n\n");
    // The manual's commands ask at the terminal; one more option makes others read a pipe.
    for (user, command, option) in [
        ("alice", "socksd --hash", ""),
        ("bob", "mkpasswd -m sha-512", "-s"),
        ("carol", "openssl passwd -6", "-stdin"),
    ] {
        assert!(
            examples.contains(&format!("printf '{user}:%s\\en' \"$({command})\"")),
            "{command}"
        );
        let words: Vec<&str> =
            command.split(' ').chain((!option.is_empty()).then_some(option)).collect();
        let hash = hash(&words, &format!("{user}'s password"));
        content.push_str(&format!("{user}:{hash}\n"));
    }
    let users = TempFile::new(&content);
    let server = Server::start(&["--users", users.path()]);
    for (user, password, status) in [
        ("alice", "alice's password", 0),
        ("bob", "bob's password", 0),
        ("carol", "carol's password", 0),
        ("alice", "bob's password", 1),
        ("dave", "alice's password", 1),
    ] {
        let (ulen, plen) =
            (u8::try_from(user.len()).unwrap(), u8::try_from(password.len()).unwrap());
        let claim = [&[1, ulen], user.as_bytes(), &[plen], password.as_bytes()].concat();
        let mut client = server.sent(&[&[5, 1, 2], &claim[..]].concat());
        assert_eq!(read(&mut client, 4), [5, 2, 1, status], "{user} with {password}");
    }
}

#[test]
fn the_lines_of_the_manual_of_the_users_file_are_taken() {
    let examples = section_of("man/socksd.users.5", "EXAMPLES");
    let is_line = |line: &&str| line.contains(':') && line.contains("$5$");
    let lines: Vec<&str> = examples.lines().filter(is_line).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    let users = TempFile::new(&lines.join("\n"));
    let server = Server::start(&["--users", users.path()]);
    server.log_line(&["event=policy ", " users=3"]);
}

#[test]
fn a_busy_port_ends_with_status_111_and_the_reason() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = busy.local_addr().unwrap().to_string();
    let (status, stderr) = failure(&["--listen", &addr]);
    assert_eq!(status, Some(111));
    let expected =
        format!("socksd: cannot listen on {addr}: Address already in use (os error 98)\n");
    assert_eq!(stderr, expected);
}

#[test]
fn an_argument_that_is_not_utf_8_is_told() {
    let (status, stderr) = failure(&[OsStr::from_bytes(b"--log=\xff")]);
    assert_eq!(status, Some(100));
    assert_eq!(stderr, format!("socksd: {NOT_UTF_8}\nTry 'socksd --help'.\n"));
}

/// Runs socksd by way of a shell that redirects its descriptors.
fn redirected(redirections: &str, args: &[&str]) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec \"$0\" \"$@\" {redirections}")).arg(SOCKSD).args(args);
    shell
}

#[test]
fn help_and_version_go_to_standard_output_and_always_succeed() {
    for args in [["--help"], ["-h"], ["--version"], ["-V"]] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).ends_with('\n'));
        assert_eq!(text(&output.stderr), "");
        for redirections in [">/dev/full", ">&-", ">/dev/full 2>&1", "<&- >&- 2>&-"] {
            let output = redirected(redirections, &args).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{args:?} {redirections}");
            assert_eq!(text(&output.stderr), "", "{args:?} {redirections}");
        }
    }
    assert_eq!(text(&run(&["-V"]).stdout), concat!("socksd ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_failure_has_its_status_where_nobody_can_be_told() {
    for redirections in ["2>/dev/full", "2>&-", "<&- >&- 2>&-"] {
        for (args, status) in [
            (["--nonsense", ""], 100),
            (["--users", "/nonexistent"], 100),
            (["--log", "/nonexistent/log"], 111),
        ] {
            let code = redirected(redirections, &args).status().unwrap().code();
            assert_eq!(code, Some(status), "{args:?} {redirections}");
        }
    }
}

#[test]
fn a_server_without_standard_descriptors_serves_and_logs_to_its_file() {
    let log = TempFile::new("");
    let args = ["--listen", "127.0.0.1:0", "--rule=allow to all", "--log", log.path()];
    let mut server = redirected("<&- >&- 2>&-", &args).spawn().unwrap();
    let lines = || fs::read_to_string(log.path()).unwrap();
    eventually("it listens", || lines().contains("event=limits "));
    let addr: SocketAddr = field(lines().lines().next().unwrap(), "addr").parse().unwrap();

    let target = Target::echo();
    let mut client = connect(addr);
    client.write_all(&[HELLO, &request5(1, target.addr)].concat()).unwrap();
    assert_eq!(read(&mut client, 2), [5, 0]);
    assert_eq!(reply5(&mut client).0, 0);
    client.write_all(b"payload").unwrap();
    assert_eq!(read(&mut client, 7), b"payload");
    drop(client);
    eventually("the session is logged", || lines().contains("event=close "));

    let kill = Command::new("kill").arg(server.id().to_string()).status().unwrap();
    assert!(kill.success());
    assert_eq!(server.wait().unwrap().code(), Some(0));
    assert!(lines().ends_with("event=stopping signal=TERM sessions=0\n"), "{}", lines());
}

#[test]
fn int_and_term_end_the_server_with_status_0() {
    for signal in ["INT", "TERM"] {
        let mut server = Server::start(&[]);
        server.signal(signal);
        assert_eq!(server.wait(), Some(0));
        server.log_line(&["event=stopping ", &format!("signal={signal}")]);
    }
}

// The log, as the manual tells of it.

/// The events of the manual, each with its fields in order.
fn events() -> Vec<(String, Vec<String>)> {
    let lists = lists(&section("The log"));
    let events = lists[0].iter().map(|(head, _)| {
        let words = head.strip_prefix("Cm ").unwrap().replace("Ar ", "");
        let mut words = words.split(' ').map(str::to_owned);
        (words.next().unwrap(), words.collect())
    });
    events.collect()
}

/// The words of one of the lists of the log: 1 has fields, 2 and 3 have reasons.
fn words(list: usize) -> BTreeSet<String> {
    let lists = lists(&section("The log"));
    assert_eq!(lists.len(), 4);
    let heads = lists[list].iter().flat_map(|(head, _)| {
        head.split(" , ").map(|word| word.split(' ').next_back().unwrap().to_owned())
    });
    heads.collect()
}

/// The code of all of `src`.
fn all_code() -> String {
    sources("src").iter().map(|file| fs::read_to_string(root().join(file)).unwrap()).collect()
}

/// All Rust files below `directory`, by their paths from the root of the repository.
fn sources(directory: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join(directory)).unwrap() {
        let path = format!("{directory}/{}", entry.unwrap().file_name().into_string().unwrap());
        if root().join(&path).is_dir() {
            files.extend(sources(&path));
        } else if path.ends_with(".rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn the_manual_has_the_events_of_the_source() {
    let files = sources("src");
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    // Lines are begun nowhere else: what makes them is not public.
    let mut source = literals(&files, ".line(\"");
    for marker in [".line(log, \"", ".log_event(log, \"", ".write_end(log, \""] {
        source.extend(literals(&files, marker));
    }
    let manual: BTreeSet<String> = events().into_iter().map(|(event, _)| event).collect();
    assert_eq!(manual, source);
}

#[test]
fn the_keys_of_the_source_are_those_of_the_manual_and_bare_words_for_jq() {
    const METHODS: [&str; 9] = [
        "address",
        "dash",
        "number",
        "number_or_dash",
        "octets",
        "seconds",
        "text",
        "word",
        "word_or_dash",
    ];
    let files = sources("src");
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let mut keys = BTreeSet::new();
    for method in METHODS {
        keys.extend(literals(&files, &format!(".{method}(\"")));
    }
    // What calls `host`, or `address`.
    keys.extend(literals(&files, "destination(line, \""));
    // Where the policy's loader takes a text from is no key.
    assert!(keys.remove("--rule"));
    keys.extend(arms(&all_code(), "The key in the log for the number of"));
    // A table: `("nofile", nofile),` and so on.
    let walls = fs::read_to_string(root().join("src/server/walls.rs")).unwrap();
    let (_, walls) = walls.split_once("    [\n        (\"").unwrap();
    let (walls, _) = walls.split_once("    ]").unwrap();
    keys.extend(walls.split("\n        (\"").map(|row| row.split('"').next().unwrap().to_owned()));

    let mut manual: BTreeSet<String> = events().into_iter().flat_map(|(_, keys)| keys).collect();
    manual.insert("event".to_owned());
    assert_eq!(keys, manual);
    assert!(keys.len() > 40, "this test has gone blind");
    for key in keys {
        let is_bare = |c| matches!(c, 'a'..='z' | '0'..='9' | '_');
        assert!(key.chars().all(is_bare), "{key}");
    }
}

#[test]
fn auth_10_sec_13_sec_14_the_manual_warns_of_what_socks_does_not_protect() {
    let text = section("Passwords and privacy").replace('\n', " ");
    for warning in [
        "SOCKS encrypts nothing. User names, passwords",
        "put TLS, IPsec or .Xr ssh 1 between client and server",
        "The USERID of SOCKS 4 and 4A proves nothing",
    ] {
        assert!(text.contains(warning), "{warning}");
    }
}

#[test]
fn the_manual_has_the_reasons_of_the_source() {
    let (files, code) = (sources("src"), all_code());
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let mut refused = arms(&code, "pub fn reason(&self)");
    for marker in ["Stop::refused(\"", "reason: \"", ".word(\"reason\", \""] {
        refused.extend(literals(&files, marker));
    }
    // The failures that are no refusals.
    assert!(refused.remove("client") && refused.remove("stopped"));
    assert_eq!(words(2), refused);

    // A client that leaves before the relay gives the same word as one that closes first.
    assert_eq!(words(3), arms(&code, "How a session ended."));

    let events = list("The log");
    let (_, at_limit) = events.iter().find(|(head, _)| head.ends_with("limit count")).unwrap();
    for limit in arms(&code, "The reason why a client was refused.") {
        assert!(at_limit.contains(&format!(".Cm {limit} ")), "{limit}");
    }
}

/// The string literals that the arms of the first match behind `begin` give.
fn arms(code: &str, begin: &str) -> BTreeSet<String> {
    let code = code.split(begin).nth(1).unwrap_or_else(|| panic!("no {begin}"));
    let code = code.split("\n    }\n").next().unwrap();
    let arms = code.split("=> \"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    let arms: BTreeSet<String> = arms.collect();
    assert!(!arms.is_empty(), "{begin}: this test has gone blind");
    arms
}

/// The event and the keys of the fields of a log line.
fn shape(line: &str) -> (String, Vec<String>) {
    // The one value that may hold blanks comes last.
    let (line, error) =
        line.split_once(" error=\"").map_or((line, None), |(line, _)| (line, Some("error")));
    let mut fields = line.split(' ').map(|field| field.split_once('=').unwrap());
    assert_eq!(fields.next().unwrap().0, "time");
    let (key, event) = fields.next().unwrap();
    assert_eq!(key, "event");
    let keys = fields.map(|(key, _)| key).chain(error).map(str::to_owned);
    (event.to_owned(), keys.collect())
}

/// What each line in JSON has is held to this list as it is read.
#[test]
fn the_manual_calls_no_field_a_number_that_no_event_has() {
    let (numbers, prefix) = &*json::NUMBERS;
    let keys: BTreeSet<String> = events().into_iter().flat_map(|(_, keys)| keys).collect();
    for number in numbers {
        assert!(keys.contains(number), "{number}");
    }
    assert!(keys.iter().any(|key| key.starts_with(prefix)), "{prefix}");
}

#[test]
fn lines_have_the_fields_of_the_manual_in_its_order() {
    assert_lines_are_of_the_manual("text");
}

#[test]
fn lines_in_json_have_the_same_fields_in_the_same_order() {
    assert_lines_are_of_the_manual("json");
}

/// Has socksd log every event that can be brought about from outside.
fn assert_lines_are_of_the_manual(format: &str) {
    let format = format!("--log-format={format}");
    let (target, (refusing, _kept)) = (Target::echo(), refusing_port());
    let mut lines = Vec::new();

    let mut server = Server::open(&["-v", &format, "--metrics", "127.0.0.1:0"]);
    drop(tunnel(&server, target.addr));
    let mut refused = server.sent(&[HELLO, &request5(1, refusing)].concat());
    read_to_end(&mut refused);
    server.log_line(&["event=close "]);
    server.log_line(&["event=refuse "]);
    let mut kept = tunnel(&server, target.addr);
    // Once it relays, it is among those that are told of.
    kept.write_all(b"x").unwrap();
    read(&mut kept, 1);
    server.signal("USR1");
    server.log_line(&["event=session "]);
    server.signal("TERM");
    server.log_line(&["event=stopping "]);
    server.signal("INT");
    assert_eq!(read_to_end(&mut kept), b"");
    server.wait();
    server.log_line(&["event=stopping "]);
    lines.extend(server.log());

    let (rules, port) = (TempFile::new("allow ident to all"), refusing.port().to_string());
    let args = ["-v", "--rules", rules.path(), "--ident-port", &port, &format];
    let server = Server::start(&args);
    let mut refused = server.sent(&[HELLO, &request5(1, target.addr)].concat());
    read_to_end(&mut refused);
    server.log_line(&["event=ident "]);
    server.signal("HUP");
    server.log_line(&["event=reload "]);
    fs::write(&rules.0, "bogus").unwrap();
    server.signal("HUP");
    server.log_line(&["event=reload-failed "]);
    lines.extend(server.log());

    let mut server = Server::start(&["--exit-when-idle", "1", &format]);
    server.wait();
    server.log_line(&["event=idle "]);
    lines.extend(server.log());

    let server = Server::start(&["--max-sessions", "1", &format]);
    let _one = server.sent(&[5]);
    eventually("a client beyond the limit is refused", || {
        assert_ends_silently(&mut server.connect(), SOON);
        server.log().iter().any(|line| line.contains("limit=sessions"))
    });
    lines.extend(server.log());

    let users = TempFile::alice();
    let server = Server::start(&["--users", users.path(), &format]);
    let _guesses: Vec<_> =
        (0..10).map(|_| server.sent(b"\x05\x01\x02\x01\x05alice\x05wrong")).collect();
    server.log_line(&["event=penalty "]);
    lines.extend(server.log());

    // Too few descriptors for the sessions asked for, then for any at all.
    let mut limited = Command::new("prlimit");
    limited.args(["--nofile=100", SOCKSD, "--listen", "127.0.0.1:0", &format]);
    let server = Server::spawn(&mut limited);
    server.log_line(&["event=warning "]);
    // Once it serves, it has opened all it needs.
    drop(server.connect());
    server.log_line(&["event=close "]);
    let pid = server.pid().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, "--nofile=5"]).status().unwrap();
    assert!(status.success());
    let _clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    server.log_line(&["event=warning "]);
    server.log_line(&["event=error "]);
    lines.extend(server.log());

    let known = events();
    let mut seen = BTreeSet::new();
    for line in lines {
        let shape = shape(&line);
        assert!(known.contains(&shape), "not in the manual: {line}");
        seen.insert(shape);
    }
    for (event, fields) in known {
        // A panic cannot be brought about from outside; other tests have the others.
        let elsewhere = ["panic", "log-dropped", "reopen-failed"].contains(&event.as_str());
        assert!(elsewhere || seen.contains(&(event.clone(), fields)), "never seen: {event}");
    }
}

#[test]
fn the_manual_has_the_metrics_of_the_server_in_its_order() {
    let server = Server::start(&["--metrics", "127.0.0.1:0"]);
    read_to_end(&mut server.sent(b"GET"));
    server.log_line(&["event=refuse "]);
    let line = server.log_line(&["event=metrics "]);
    let mut client = connect(field(&line, "addr").parse().unwrap());
    client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let response = text(&read_to_end(&mut client));

    // Of each its name, its kind and its labels.
    let mut served: Vec<(String, String, BTreeSet<String>)> = Vec::new();
    for line in response.lines().skip_while(|line| !line.starts_with('#')) {
        if let Some(metric) = line.strip_prefix("# TYPE ") {
            let (name, kind) = metric.split_once(' ').unwrap();
            served.push((name.to_owned(), kind.to_owned(), BTreeSet::new()));
        } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = labels.split('"').step_by(2).filter_map(|part| part.strip_suffix('='));
            let labels = labels.map(|label| label.trim_start_matches(',').to_owned());
            // Those of a histogram's buckets are not for its reader.
            served.last_mut().unwrap().2.extend(labels.filter(|label| label != "le"));
        }
    }
    let metrics = lists(&section("METRICS")).remove(1);
    let manual = metrics.iter().map(|(head, body)| {
        let (name, labels) = head.split_once(" Ar ").unwrap_or((head, ""));
        let kind = body.trim_start_matches("A ").split(':').next().unwrap();
        let labels = labels.split_whitespace().map(str::to_owned).collect();
        (name.trim_start_matches("Cm ").to_owned(), kind.to_owned(), labels)
    });
    assert_eq!(served, manual.collect::<Vec<_>>());

    let (_, dropped) = metrics.iter().find(|(head, _)| head.ends_with(" Ar cause")).unwrap();
    let causes: BTreeSet<String> =
        dropped.split(".Cm ").skip(1).map(|rest| rest.split(' ').next().unwrap().into()).collect();
    assert_eq!(causes, arms(&all_code(), "Why a datagram was not relayed."));
}

#[test]
fn lines_that_a_full_pipe_would_not_take_are_counted_in_the_next() {
    let mut server = Command::new(SOCKSD)
        .args(["--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap);
    let addr: SocketAddr = field(&lines.next().unwrap(), "addr").parse().unwrap();
    let refused = || {
        let mut client = connect(addr);
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        assert_ends_silently(&mut client, SOON);
    };
    // More than the 64 KiB of a pipe and the buffer of this reader.
    (0..600).for_each(|_| refused());
    let told = lines.by_ref().inspect(|_| refused()).find(|line| line.contains("log-dropped"));
    let told = told.unwrap();
    assert!(events().contains(&shape(&told)), "not in the manual: {told}");
    let dropped: u32 = field(&told, "lines").parse().unwrap();
    assert!(dropped > 0);
    server.kill().unwrap();
    server.wait().unwrap();
}
