//! What a server gives up: root, the root directory, new privileges, and all files but its own.
//! Most of it is for root to give up: these tests fail for others.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::netns::isolated;
use crate::common::*;

const NOBODY: u32 = 65534;

/// Writes a file, in a directory that may be new, as an editor does: in place of the old one.
fn write(directory: &TempDir, name: &str, text: &str, mode: u32) -> String {
    let (path, new) = (directory.0.join(name), directory.0.join(".new"));
    let parent = path.parent().unwrap();
    fs::create_dir_all(parent).unwrap();
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(&new, path).unwrap();
    directory.path(name)
}

/// The same for a file of nobody that only nobody can read.
fn write_for_nobody(directory: &TempDir, name: &str, text: &str) -> String {
    let path = write(directory, name, text, 0o600);
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    path
}

/// Runs a command that is to end by itself; returns its status and what it says.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.stdout, b"");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn socksd(args: &[&str]) -> Command {
    let mut command = Command::new(SOCKSD);
    command.args(["--listen", "127.0.0.1:0"]).args(args);
    command
}

/// Asserts that every thread of a server is nobody and can be nobody else.
fn assert_is_nobody(server: &Server) {
    let ids = format!("\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}\n");
    eventually("main, signals and accept are there", || server.holds().1 >= 3);
    for task in fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        for line in [
            format!("\nUid:{ids}"),
            format!("\nGid:{ids}"),
            format!("\nGroups:\t{NOBODY} \n"),
            "\nNoNewPrivs:\t1\n".to_owned(),
        ] {
            assert!(status.contains(&line), "no {line:?} in {status}");
        }
        // The bounding set stays; without new privileges it bounds nothing.
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("\n{set}:\t0000000000000000\n")), "{set}: {status}");
        }
    }
}

/// Asserts that octets pass through a new session.
fn assert_serves(server: &Server) {
    let target = Target::echo();
    let mut session = tunnel(server, target.addr);
    session.write_all(b"ping").unwrap();
    assert_eq!(read(&mut session, 4), b"ping");
}

/// Reloads and waits for `event`.
fn reload(server: &Server, event: &str) -> String {
    let before = server.log().iter().filter(|line| line.contains(event)).count();
    server.signal("HUP");
    server.log_lines(&[event], before + 1).pop().unwrap()
}

#[test]
fn a_server_binds_port_80_and_becomes_nobody() {
    isolated(|| {
        demand_root();
        for user in ["nobody", "nobody:nogroup", "65534", "65534:65534"] {
            let mut command = Command::new(SOCKSD);
            let mut server = Server::spawn(command.args([
                "--listen=127.0.0.1:80",
                "--rule=allow to all",
                "--user",
                user,
            ]));
            assert_eq!(server.addr.port(), 80);
            assert_serves(&server);
            assert_is_nobody(&server);
            assert!(!server.log().iter().any(|line| line.contains("event=warning")));
            server.signal("TERM");
            assert_eq!(server.wait(), Some(0));
        }
    });
}

#[test]
fn groups_of_root_are_left_behind() {
    demand_root();
    let mut command = Command::new("setpriv");
    command.args(["--groups", "0,1,4,65534", SOCKSD, "-l", "127.0.0.1:0", "--user", "nobody"]);
    assert_is_nobody(&Server::spawn(&mut command));
}

#[test]
fn without_options_the_user_stays_and_nothing_can_gain_privileges() {
    let server = Server::open(&[]);
    let status = |pid: &str| fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let (own, theirs) = (status("self"), status(&server.pid().to_string()));
    for key in ["Uid:", "Gid:", "Groups:", "CapEff:"] {
        let line =
            |status: &str| status.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
        assert_eq!(line(&own), line(&theirs));
    }
    assert!(theirs.contains("\nNoNewPrivs:\t1\n"));
    let root = |pid: &str| fs::read_link(format!("/proc/{pid}/root")).unwrap();
    assert_eq!(root("self"), root(&server.pid().to_string()));
}

#[test]
fn root_and_unknown_names_are_refused_by_name() {
    for (user, why) in [
        ("root", "expected a user and a group other than root"),
        ("0:65534", "expected a user and a group other than root"),
        ("65534:0", "expected a user and a group other than root"),
        ("no-such", "no such user"),
        ("nobody:no-such", "no such group"),
    ] {
        for args in [vec!["--user", user], vec!["--check", "--user", user]] {
            let (status, stderr) = run(&mut socksd(&args));
            assert_eq!(status, Some(100));
            assert_eq!(stderr, format!("socksd: --user {user}: {why}\n"));
        }
    }
}

#[test]
fn whoever_is_not_root_is_told_so() {
    let directory = TempDir::new();
    let binary = directory.path("socksd");
    copy_program(SOCKSD, &binary);
    for check in [None, Some("--check")] {
        for (option, value, what) in [
            ("--user", "65533:65533", "change to user 65533:65533".to_owned()),
            ("--chroot", directory.0.to_str().unwrap(), {
                format!("change the root directory to {}", directory.0.display())
            }),
        ] {
            let mut command = if is_root() {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups", &binary]);
                command
            } else {
                Command::new(&binary)
            };
            command.args(["-l", "127.0.0.1:0", option, value]).args(check);
            let (status, stderr) = run(&mut command);
            let expected = format!("socksd: cannot {what}: Operation not permitted (os error 1)\n");
            assert_eq!((status, stderr), (Some(111), expected));
        }
    }
}

#[test]
fn a_server_that_could_be_root_again_does_not_run() {
    demand_root();
    for check in [None, Some("--check")] {
        // Changing users then leaves all capabilities as they are.
        let mut command = Command::new("setpriv");
        command.args(["--securebits", "+no_setuid_fixup", SOCKSD, "-l", "127.0.0.1:0"]);
        let (status, stderr) = run(command.args(["--user", "nobody"]).args(check));
        let expected = "socksd: cannot change to user nobody: root privileges can be regained\n";
        assert_eq!((status, stderr.as_str()), (Some(111), expected));
    }
}

#[test]
fn in_another_root_directory_names_are_found_and_files_read_anew() {
    demand_root();
    let directory = TempDir::new();
    write(&directory, "etc/hosts", "127.0.0.1 web.test\n", 0o644);
    write(&directory, "etc/resolv.conf", "nameserver 127.0.0.1\n", 0o644);
    write(&directory, "etc/rules", "include sub/more\n", 0o644);
    write(&directory, "etc/sub/more", "list mine /mine/list\nallow user any to list:mine\n", 0o644);
    write(&directory, "mine/list", "web.test\n127.0.0.1\n", 0o644);
    write_for_nobody(&directory, "users", &format!("alice:{SECRET}\n"));
    let args = [
        "--chroot",
        directory.0.to_str().unwrap(),
        "--user=65534:65534",
        "--rules=etc/rules",
        "--users=/users",
    ];
    let (status, stderr) = run(socksd(&args).arg("--check"));
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let server = Server::start(&args);
    assert_is_nobody(&server);
    let root = fs::read_link(format!("/proc/{}/root", server.pid())).unwrap();
    assert_eq!(root, directory.0);
    let current = fs::read_link(format!("/proc/{}/cwd", server.pid())).unwrap();
    assert_eq!(current, directory.0);
    server.log_line(&["event=policy ", "rules=1 users=1"]);

    let target = Target::echo();
    let ask = || {
        let mut client = server.connect();
        log_in(&mut client, "alice");
        client.write_all(&request5_name(1, b"web.test", target.addr.port())).unwrap();
        reply5(&mut client).0
    };
    assert_eq!(ask(), 0);
    write(&directory, "mine/list", "other.test\n", 0o644);
    reload(&server, "event=reload ");
    assert_eq!(ask(), 2, "the list is another");
    write(
        &directory,
        "etc/sub/more",
        "allow user any to web.test,loopback\nallow to 10.0.0.0/8\n",
        0o644,
    );
    write_for_nobody(&directory, "users", &format!("alice:{SECRET}\nbob:!\n"));
    assert!(reload(&server, "event=reload ").contains(" rules=2 users=2"));
    // Nothing of a name is kept, and the file of names may be another.
    write(&directory, "etc/hosts", "127.0.0.1 localhost web.test\n", 0o644);
    assert_eq!(ask(), 0);
    server.signal("USR1");
    server.log_line(&["event=status ", "threads=- descriptors=- "]);
    assert!(!server.log().iter().any(|line| line.contains("event=warning")));
}

#[test]
fn files_outside_the_new_root_directory_are_not_found() {
    demand_root();
    let (directory, rules) = (TempDir::new(), TempFile::new("allow to all\n"));
    let args = ["--chroot", directory.0.to_str().unwrap(), "--rules", rules.path()];
    for check in [None, Some("--check")] {
        let (status, stderr) = run(socksd(&args).args(check));
        let why = "No such file or directory (os error 2)";
        let expected = format!("socksd: cannot read {}: {why}\n", rules.path());
        assert_eq!((status, stderr), (Some(100), expected));
    }
}

#[test]
fn what_a_reload_cannot_open_is_told_before() {
    demand_root();
    let directory = TempDir::new();
    let rules = write(&directory, "rules", "include more\n", 0o644);
    let more = write(&directory, "more", "allow to all\nallow user any to all\n", 0o600);
    let users = write(&directory, "users", &format!("alice:{SECRET}\n"), 0o600);
    let args = ["--user", "nobody", "--rules", &rules, "--users", &users];
    let denied = "Permission denied (os error 13)";
    let troubles = [
        format!("{rules}:1:9: cannot read {more}: {denied}"),
        format!("cannot read {users}: {denied}"),
    ];
    let warnings: String =
        troubles.iter().map(|trouble| format!("socksd: a reload will fail: {trouble}\n")).collect();
    assert_eq!(run(socksd(&args).arg("--check")), (Some(0), warnings));

    let server = Server::start(&args);
    for trouble in &troubles {
        server.log_line(&["event=warning ", "a reload will fail: ", trouble]);
    }
    server.signal("HUP");
    for trouble in &troubles {
        server.log_line(&["event=reload-failed ", trouble]);
    }
    assert_serves(&server);
    for path in [&more, &users] {
        chown(path, Some(NOBODY), None).unwrap();
    }
    assert_eq!(run(socksd(&args).arg("--check")), (Some(0), String::new()));
    reload(&server, "event=reload ");

    // What is wrong altogether is so still.
    write(&directory, "rules", "bogus\n", 0o644);
    assert_eq!(run(socksd(&args).arg("--check")).0, Some(100));
}

#[test]
fn the_log_is_opened_as_the_user_so_that_no_link_leads_root_astray() {
    demand_root();
    let (directory, roots) = (TempDir::new(), TempDir::new());
    chown(&directory.0, Some(NOBODY), Some(NOBODY)).unwrap();
    let victim = roots.path("victim");
    fs::write(&victim, "").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
    let log = directory.path("log");
    let args = ["--user", "nobody", "--log", &log, "--check"];
    let denied = format!("socksd: cannot open {log}: Permission denied (os error 13)\n");
    for led_to in [victim.as_str(), &roots.path("new")] {
        let _ = fs::remove_file(&log);
        std::os::unix::fs::symlink(led_to, &log).unwrap();
        fs::set_permissions(&roots.0, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(run(&mut socksd(&args)), (Some(111), denied.clone()), "{led_to}");
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "");
    assert!(!Path::new(&roots.path("new")).exists());
    fs::remove_file(&log).unwrap();
    assert_eq!(run(&mut socksd(&args)), (Some(0), String::new()));
    assert_eq!(fs::metadata(&log).unwrap().uid(), NOBODY);
}

#[test]
fn the_log_is_opened_again_and_the_process_number_is_written_before_root_is_gone() {
    demand_root();
    let (directory, logs) = (TempDir::new(), TempDir::new());
    let (pid_file, log) = (directory.path("pid"), write_for_nobody(&logs, "log", ""));
    chown(&logs.0, Some(NOBODY), Some(NOBODY)).unwrap();
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    for (user, removed) in [("nobody", false), ("nobody:nogroup", false), ("", true)] {
        fs::write(&log, "").unwrap();
        let mut command = socksd(&["--pid-file", &pid_file, "--log", &log]);
        command.args((!user.is_empty()).then(|| format!("--user={user}")));
        let mut server = Killed(command.stdin(Stdio::null()).spawn().unwrap());
        eventually("it serves", || text(&log).contains("event=landlock "));
        let pid = server.0.id().to_string();
        assert_eq!(text(&pid_file), format!("{pid}\n"));
        let signal = |name| {
            assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success())
        };
        let old = logs.path("old");
        fs::rename(&log, &old).unwrap();
        signal("HUP");
        eventually("it goes on in a new log", || text(&log).contains("event=reload "));
        assert!(!text(&old).contains("event=warning"), "{}", text(&old));
        signal("TERM");
        assert!(server.0.wait().unwrap().success());
        assert_eq!(!Path::new(&pid_file).exists(), removed, "{user}");
    }
}

#[test]
fn the_path_of_a_unix_socket_is_removed_unless_the_root_directory_is_another() {
    let directory = TempDir::new();
    let path = directory.path("socket");
    let listen = format!("unix:{path}");
    let mut server = Server::open(&["--listen", &listen]);
    drop(UnixStream::connect(&path).unwrap());
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    assert!(!Path::new(&path).exists());
    demand_root();
    let inside = write(&directory, &format!("new/{path}"), "not a socket", 0o644);
    let root = directory.path("new");
    for _ in 0..2 {
        let args = ["--listen", &listen, "--chroot", &root];
        let mut server = Server::open(&args);
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(HELLO).unwrap();
        client.read_exact(&mut [0; 2]).unwrap();
        drop(client);
        server.signal("TERM");
        assert_eq!(server.wait(), Some(0));
        assert!(Path::new(&path).exists());
        assert!(Path::new(&inside).exists());
    }
}

#[test]
fn landlock_keeps_a_server_to_the_directories_of_its_files() {
    let (directory, elsewhere) = (TempDir::new(), TempDir::new());
    let rules = write(&directory, "rules", "include sub/more\n", 0o644);
    write(&directory, "sub/more", "allow to all\n", 0o644);
    let list = write(&elsewhere, "list", "192.0.2.1\n", 0o644);
    let state = |server: &Server| field(&server.log_line(&["event=landlock "]), "state").to_owned();
    for option in [None, Some("--no-landlock")] {
        write(&directory, "sub/more", "allow to all\n", 0o644);
        let args: Vec<&str> = ["--rules", &rules].into_iter().chain(option).collect();
        let server = Server::start(&args);
        assert_serves(&server);
        // New files in old directories.
        write(&directory, "sub/other", "allow to all\nallow to all\n", 0o644);
        write(&directory, "sub/more", "include other\n", 0o644);
        assert!(reload(&server, "event=reload ").contains(" rules=2 "));
        // A new file elsewhere, which its user may read.
        write(&directory, "sub/more", &format!("list bad {list}\nallow to list:bad\n"), 0o644);
        match (option, state(&server).as_str()) {
            (None, "on") => {
                let line = reload(&server, "event=reload-failed ");
                let why = format!("cannot read {list}: Permission denied (os error 13)");
                assert!(line.contains(&why), "{line}");
                assert_serves(&server);
            }
            (Some(_), "off") => {
                assert!(reload(&server, "event=reload ").contains(" rules=1 "));
            }
            (_, other) => panic!("{option:?}: Landlock is {other}, which this test needs"),
        }
        server.signal("USR1");
        let status = server.log_line(&["event=status "]);
        assert_ne!(field(&status, "descriptors"), "-");
        // Named at the start, it is one of its files.
        let server = Server::start(&args);
        reload(&server, "event=reload ");
    }
}
