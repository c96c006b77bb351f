//! `--hash`: what it takes, what it prints, and that nobody gets to see the password.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::common::{SOCKSD, Server, TempFile, eventually, read, root};
use socksd::sync::lock;

const EXPECTED: &str = "socksd: expected a password of 1 to 255 bytes without NUL\n";

fn text(octets: &[u8]) -> String {
    String::from_utf8(octets.to_vec()).unwrap()
}

/// Runs `socksd --hash` with this on standard input, from a pipe.
fn hash(input: &[u8]) -> Output {
    let mut child = Command::new(SOCKSD)
        .arg("--hash")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// The hash that is printed for a password that is taken.
fn printed(input: &[u8]) -> String {
    let output = hash(input);
    assert_eq!(text(&output.stderr), "", "a pipe is not prompted");
    assert_eq!(output.status.code(), Some(0));
    let hash = text(&output.stdout);
    let hash = hash.strip_suffix('\n').expect("one line");
    assert!(hash.bytes().all(|octet| octet.is_ascii_graphic() && octet != b':'), "{hash}");
    hash.to_owned()
}

fn login(server: &Server, password: &[u8]) -> u8 {
    let len = u8::try_from(password.len()).unwrap();
    let claim = [b"\x05\x01\x02\x01\x05alice", &[len][..], password].concat();
    read(&mut server.sent(&claim), 4)[3]
}

#[test]
fn a_hash_made_through_a_pipe_logs_its_user_in_and_shows_no_password() {
    let longest = [b'x'; 255];
    let passwords: [&[u8]; 4] = [b"open sesame", b"a:b\\'\"$(id)\r", b"\xff\xfe\x01", &longest];
    for password in passwords {
        for end in [&b"\n"[..], b"", b"\nanother line\n"] {
            let hash = printed(&[password, end].concat());
            let users = TempFile::new(&format!("alice:{hash}:9999-12-31:staff\n"));
            let server = Server::start(&["-v", "--users", users.path()]);
            assert_eq!(login(&server, password), 0);
            assert_eq!(login(&server, b"another line"), 1);
            server.log_line(&["event=refuse "]);
            let log = server.log().join("\n");
            assert!(!log.contains("sesame") && !log.contains("xxxx") && !log.contains(&hash));
        }
    }
}

#[test]
fn the_same_password_never_has_the_same_hash() {
    assert_ne!(printed(b"secret\n"), printed(b"secret\n"));
}

#[test]
fn a_password_that_nobody_could_log_in_with_ends_with_status_100() {
    for input in [&b""[..], b"\n", b"\nsecret\n", b"sec\0ret\n", &[b'x'; 256], &[b'x'; 70_000]] {
        let mut child = Command::new(SOCKSD)
            .arg("--hash")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may be gone before it has taken all of a long one.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(100));
        assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), EXPECTED.into()));
    }
}

#[test]
fn a_password_on_the_command_line_is_refused_and_not_shown() {
    for args in [&["--hash", "sesame"][..], &["--hash=sesame"], &["sesame", "--hash"]] {
        let output = Command::new(SOCKSD).args(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(100), "{args:?}");
        assert_eq!(text(&output.stdout), "");
        let expected = "socksd: option --hash takes no argument\nTry 'socksd --help'.\n";
        assert_eq!(text(&output.stderr), expected, "{args:?}");
    }
}

#[test]
fn what_cannot_be_read_or_printed_ends_with_status_111() {
    let password = TempFile::new("secret\n");
    for (input, output, error) in [
        ("/", "/dev/null", "cannot read the password: Is a directory (os error 21)"),
        (
            password.path(),
            "/dev/full",
            "cannot print the hash: No space left on device (os error 28)",
        ),
    ] {
        let script = format!("exec \"$0\" --hash <{input} >{output}");
        let output = Command::new("sh").args(["-c", &script, SOCKSD]).output().unwrap();
        assert_eq!(output.status.code(), Some(111), "{error}");
        assert_eq!(text(&output.stderr), format!("socksd: {error}\n"));
    }
}

/// `socksd --hash` on a pseudo-terminal made by script(1), between two looks at its settings.
struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<Vec<u8>>>,
    hash: TempFile,
}

impl Terminal {
    fn start() -> Self {
        let hash = TempFile::new("");
        // The trap keeps the shell alive on an interrupt, and no other program.
        let session = format!(
            "trap : INT QUIT; stty -g; {SOCKSD} --hash >{}; echo status=$?; stty -g; echo end.",
            hash.path()
        );
        let mut child = Command::new("script")
            .args(["-qec", &session, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run script: {error}"));
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut stdout, shown) = (child.stdout.take().unwrap(), Arc::clone(&screen));
        thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(len @ 1..) = stdout.read(&mut buffer) {
                lock(&shown).extend(&buffer[..len]);
            }
        });
        let keyboard = child.stdin.take().unwrap();
        Self { child, keyboard, screen, hash }
    }

    fn screen(&self) -> String {
        text(&lock(&self.screen)).replace("\r\n", "\n")
    }

    /// Waits for a prompt and types.
    fn answer(&mut self, prompt: &str, keys: &[u8]) {
        eventually(prompt, || self.screen().ends_with(prompt));
        self.keyboard.write_all(keys).unwrap();
    }

    /// The exit status, what was shown in between, and what was printed. The settings of the
    /// terminal have to be what they were.
    fn end(self) -> (String, String, String) {
        eventually("the session ends", || self.screen().ends_with("end.\n"));
        let screen = self.screen();
        let lines: Vec<&str> = screen.lines().collect();
        let [before, shown @ .., status, after, "end."] = &lines[..] else { panic!("{screen}") };
        assert_eq!(before, after, "the terminal is as it was: {screen}");
        let status = status.strip_prefix("status=").unwrap_or_else(|| panic!("{screen}"));
        (status.into(), shown.join("\n"), fs::read_to_string(self.hash.path()).unwrap())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that writes to the file at `path`.
fn writer(path: &str) -> Option<String> {
    let mut processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid = entry.ok()?.file_name().into_string().ok()?;
        let to = fs::read_link(format!("/proc/{pid}/fd/1")).ok()?;
        let runs = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        (to.to_str() == Some(path) && runs.ends_with("socksd")).then_some(pid)
    });
    processes.next()
}

/// The arguments of all processes there are.
fn arguments() -> String {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let octets = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    octets.map(|octets| String::from_utf8_lossy(&octets).into_owned() + "\n").collect()
}

#[test]
fn a_terminal_shows_prompts_and_no_password_and_the_hash_logs_in() {
    let mut terminal = Terminal::start();
    terminal.answer("Password: ", b"open sesame 7531\n");
    eventually("it asks again", || terminal.screen().ends_with("Password again: "));
    assert!(arguments().contains("--hash"));
    assert!(!arguments().contains("open sesame"));
    // A stop is held back: it would leave the shell without an echo. (Here there is no shell to go
    // on after a stop, and the system would not deliver one.)
    let pid = writer(terminal.hash.path()).expect("it runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
    let blocked = u64::from_str_radix(blocked, 16).unwrap();
    assert_ne!(blocked & 1 << (socksd::sys::SIGTSTP - 1), 0, "{status}");
    terminal.answer("Password again: ", b"open sesame 7531\n");
    let (status, shown, hash) = terminal.end();
    assert_eq!((status.as_str(), shown.as_str()), ("0", "Password: \nPassword again: "));
    assert!(!hash.contains("sesame"));
    let users = TempFile::new(&format!("alice:{hash}"));
    let server = Server::start(&["--users", users.path()]);
    assert_eq!(login(&server, b"open sesame 7531"), 0);
    assert_eq!(login(&server, b"open sesame 7531\n"), 1);
}

#[test]
fn two_different_passwords_at_a_terminal_make_no_hash() {
    let mut terminal = Terminal::start();
    terminal.answer("Password: ", b"sesame\n");
    terminal.answer("Password again: ", b"sesam\n");
    let (status, shown, hash) = terminal.end();
    assert_eq!(status, "100");
    assert_eq!(shown, "Password: \nPassword again: \nsocksd: the two passwords differ");
    assert_eq!(hash, "");
}

#[test]
fn a_password_that_will_not_do_is_not_asked_for_again() {
    for keys in [&b"\n"[..], b"\x04", &[&[b'x'; 256][..], b"\n"].concat()] {
        let mut terminal = Terminal::start();
        terminal.answer("Password: ", keys);
        let (status, shown, hash) = terminal.end();
        assert_eq!((status.as_str(), hash.as_str()), ("100", ""));
        assert_eq!(shown, format!("Password: \n{}", EXPECTED.trim_end()));
    }
}

#[test]
fn a_signal_at_either_prompt_leaves_the_terminal_as_it_was() {
    let error = "socksd: cannot read the password: operation interrupted";
    for key in [b"\x03", b"\x1c"] {
        let mut terminal = Terminal::start();
        terminal.answer("Password: ", key);
        let (status, shown, hash) = terminal.end();
        assert_eq!((status.as_str(), hash.as_str()), ("111", ""));
        assert_eq!(shown, format!("Password: \n{error}"));

        let mut terminal = Terminal::start();
        terminal.answer("Password: ", b"sesame\n");
        terminal.answer("Password again: ", &[b"sesa", &key[..]].concat());
        let (status, shown, hash) = terminal.end();
        assert_eq!((status.as_str(), hash.as_str()), ("111", ""));
        assert_eq!(shown, format!("Password: \nPassword again: \n{error}"));
    }
    for signal in ["TERM", "HUP"] {
        let terminal = Terminal::start();
        eventually("it asks", || terminal.screen().ends_with("Password: "));
        let pid = writer(terminal.hash.path()).expect("it runs");
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        assert_eq!(terminal.end().0, "111", "{signal}");
    }
}

#[test]
fn the_manual_and_the_program_tell_of_the_same_wrong_passwords() {
    let manual = fs::read_to_string(root().join("man/socksd.8")).unwrap();
    let source = fs::read_to_string(root().join("src/hash.rs")).unwrap();
    let list = manual.split("\nA wrong password ends\n").nth(1).unwrap();
    let list = list.split("\n.El\n").next().unwrap();
    let told: Vec<&str> = list.lines().filter_map(|line| line.strip_prefix(".It ")).collect();
    let messages: Vec<&str> =
        source.split("wrong(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(told, messages);
    assert!(told.contains(&EXPECTED.trim_start_matches("socksd: ").trim_end()));
}
