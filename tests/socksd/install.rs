//! What `make` builds and installs: a static binary that needs nothing of its host, and the files
//! where they belong.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use crate::common::{
    Killed, Server, TempDir, TempFile, copy_program, eventually, in_network_of, in_new_network,
    is_root, root,
};

/// Everything in a directory, by path from it, with its mode.
fn content_of(directory: &TempDir) -> BTreeMap<String, u32> {
    let (mut content, mut directories) = (BTreeMap::new(), vec![directory.0.clone()]);
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(&directory.0).unwrap().to_str().unwrap().to_owned();
            content.insert(name, metadata.mode() & 0o7777);
            if metadata.is_dir() {
                directories.push(path);
            }
        }
    }
    content
}

fn output(command: &mut Command) -> Output {
    // cargo hands its standard input on to rustc, which reads it.
    command.stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// What a command that has to succeed prints.
fn printed(command: &mut Command) -> String {
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// `make`, building in a directory of its own that is kept from run to run: the directory of the
/// cargo that runs this test may be locked by it, and `target/static` is not the test's to change.
fn make(build: &str) -> (Command, PathBuf) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(build);
    let mut make = Command::new("make");
    make.current_dir(root()).env("CARGO_TARGET_DIR", &directory);
    // A make that runs this test must not speak to this one.
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
    (make, directory)
}

/// The result of `make static`.
pub(crate) struct Static {
    pub(crate) binary: PathBuf,
    is_musl: bool,
}

impl Static {
    /// Both are built in one directory, one after the other: most often the second is the first one
    /// once more, and cargo has it built.
    fn build(name: &str, path: Option<&Path>) -> Self {
        let (mut make, directory) = make("static");
        if let Some(first) = path {
            let path = std::env::var("PATH").unwrap();
            make.env("PATH", format!("{}:{path}", first.display()));
        }
        printed(make.arg("static"));
        let binary = directory.join(name);
        fs::rename(directory.join("static/socksd"), &binary).unwrap();
        let octets = fs::read(&binary).unwrap();
        let target = format!("{}-unknown-linux-musl/release/socksd", std::env::consts::ARCH);
        let is_musl =
            fs::read(directory.join("static-build").join(target)).is_ok_and(|musl| musl == octets);
        Self { binary, is_musl }
    }

    /// As the Makefile builds it here: with musl if rustup has it.
    pub(crate) fn preferred() -> &'static Self {
        static BUILT: OnceLock<Static> = OnceLock::new();
        BUILT.get_or_init(|| Self::build(PREFERRED, None))
    }

    /// Where [`Self::preferred`] is, once it is built.
    pub(crate) fn place() -> PathBuf {
        make("static").1.join(PREFERRED)
    }

    /// As the Makefile builds it where there is no rustup: with glibc.
    fn fallback() -> &'static Self {
        static BUILT: OnceLock<Static> = OnceLock::new();
        Self::preferred();
        BUILT.get_or_init(|| {
            let bin = TempDir::new();
            let rustup = bin.0.join("rustup");
            fs::write(&rustup, "#!/bin/sh\nexit 1\n").unwrap();
            fs::set_permissions(&rustup, fs::Permissions::from_mode(0o755)).unwrap();
            Self::build("fallback", Some(&bin.0))
        })
    }
}

/// The name of the file that is built by preference.
const PREFERRED: &str = "preferred";

/// A static server in a network of its own and in a directory that holds the two files a resolver
/// reads, and nothing else.
struct Bare {
    server: Server,
    directory: TempDir,
}

impl Bare {
    fn start(binary: &Path) -> Self {
        let directory = TempDir::new();
        let inside = |path: &str| directory.0.join(path);
        copy_program(binary, inside("socksd"));
        fs::create_dir(inside("etc")).unwrap();
        fs::write(inside("etc/hosts"), "127.0.0.1 web.test\n").unwrap();
        let resolv = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
        fs::write(inside("etc/resolv.conf"), resolv).unwrap();
        // The umask may have kept others out.
        for path in ["socksd", "etc", "etc/hosts", "etc/resolv.conf"] {
            fs::set_permissions(inside(path), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut command = in_new_network("exec chroot \"$@\"");
        // The example of the manual.
        command.args(is_root().then_some("--userspec=65534:65534"));
        command.arg(&directory.0).args(["/socksd", "--rule=allow to all"]);
        Self { server: Server::spawn(&mut command), directory }
    }

    fn background(&self, program: &str, args: &[&str]) -> Killed {
        let mut command = in_network_of(&self.server, program);
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn();
        Killed(child.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}")))
    }

    fn curl(&self, args: &[&str]) -> Output {
        let mut curl = in_network_of(&self.server, "curl");
        curl.args(["-q", "-sS", "--max-time", "5", "--noproxy", ""]).args(args);
        output(&mut curl)
    }
}

fn assert_works_in_an_empty_directory(binary: &Path) {
    let bare = Bare::start(binary);
    let pid = bare.server.pid();
    assert_eq!(bare.server.addr.to_string(), "127.0.0.1:1080", "V4-38");
    let content: Vec<String> = content_of(&bare.directory).into_keys().collect();
    assert_eq!(content, ["etc", "etc/hosts", "etc/resolv.conf", "socksd"]);
    assert_eq!(fs::read_link(format!("/proc/{pid}/root")).unwrap(), bare.directory.0);
    if is_root() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("\nUid:\t65534\t65534\t65534\t65534\n"), "{status}");
    }

    let page = TempDir::new();
    fs::write(page.0.join("page"), "the page").unwrap();
    let directory = page.0.to_str().unwrap();
    let web = ["-m", "http.server", "--bind", "127.0.0.1", "--directory", directory, "80"];
    let _web = bare.background("python3", &web);
    let records = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file",
        "--user=root",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=127.0.0.1",
        "--local=/test/",
        "--host-record=dns.test,127.0.0.1",
    ];
    let _dns = bare.background("dnsmasq", &records);
    eventually("the web server listens", || bare.curl(&["http://127.0.0.1/page"]).status.success());
    let through = ["-x", "socks5h://127.0.0.1:1080", "http://dns.test/page"];
    eventually("the name server answers", || bare.curl(&through).status.success());

    for (url, why) in [
        ("http://web.test/page", "etc/hosts has it"),
        ("http://dns.test/page", "the name server in etc/resolv.conf has it"),
    ] {
        for proxy in ["socks5h://127.0.0.1:1080", "socks4a://127.0.0.1:1080"] {
            let output = bare.curl(&["-x", proxy, url]);
            assert_eq!(output.stdout, b"the page", "{url}: {why}: {output:?}");
        }
    }
    assert!(!bare.curl(&["-x", "socks5h://127.0.0.1:1080", "http://no.test/"]).status.success());
    bare.server.log_line(&["event=refuse ", "dst=no.test:80 ", "reply=04 ", "reason=name "]);
}

#[test]
fn the_static_binary_works_in_an_empty_directory() {
    assert_works_in_an_empty_directory(&Static::preferred().binary);
}

#[test]
fn without_rustup_the_static_binary_works_in_an_empty_directory() {
    assert_works_in_an_empty_directory(&Static::fallback().binary);
}

#[test]
fn static_binaries_need_no_shared_library() {
    for Static { binary, .. } in [Static::preferred(), Static::fallback()] {
        let file = printed(Command::new("file").arg("-b").arg(binary));
        let is_static = ["static-pie linked", "statically linked"].iter().any(|s| file.contains(s));
        assert!(is_static && !file.contains("interpreter"), "{file}");
        // What there is to say comes on either stream, with either status.
        let ldd = output(Command::new("ldd").arg(binary));
        let said = String::from_utf8([ldd.stdout, ldd.stderr].concat()).unwrap();
        let is_static =
            ["statically linked", "not a dynamic executable"].iter().any(|s| said.contains(s));
        assert!(is_static, "{said}");
    }
}

#[test]
fn static_binaries_are_small_enough_for_a_small_disk() {
    for Static { binary, is_musl } in [Static::preferred(), Static::fallback()] {
        let kib = fs::metadata(binary).unwrap().len() / 1024;
        let most = if *is_musl { 1_100 } else { 2_048 };
        assert!(kib <= most, "{} has {kib} KiB", binary.display());
    }
}

#[test]
fn a_binary_with_musl_refuses_yescrypt_and_one_with_glibc_takes_it() {
    // mkpasswd -m yescrypt secret
    let users = TempFile::new(
        "alice:$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7\n",
    );
    for Static { binary, is_musl } in [Static::preferred(), Static::fallback()] {
        // A second listener on the same port: a server that took the file fails at that.
        let args = ["-l", "127.0.0.1:1", "-l", "127.0.0.1:1", "--users", users.path()];
        let output = output(Command::new(binary).args(args));
        let stderr = String::from_utf8(output.stderr).unwrap();
        let refusal = format!(
            "socksd: {}:1: this system's crypt(3) cannot compute this $y$j9T$ hash\n",
            users.path()
        );
        let (status, said) =
            if *is_musl { (100, refusal.as_str()) } else { (111, "cannot listen") };
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}

#[test]
fn a_binary_hashes_passwords_by_the_best_method_it_can_compute() {
    for Static { binary, is_musl } in [Static::preferred(), Static::fallback()] {
        let hash =
            printed(Command::new("sh").args(["-c", "echo secret | \"$0\" --hash"]).arg(binary));
        let method = if *is_musl { "$6$rounds=500000$" } else { "$y$j9T$" };
        assert!(hash.starts_with(method), "{hash}");
        // As above: it takes what it has printed.
        let users = TempFile::new(&format!("alice:{hash}"));
        let args = ["-l", "127.0.0.1:1", "-l", "127.0.0.1:1", "--users", users.path()];
        assert_eq!(output(Command::new(binary).args(args)).status.code(), Some(111), "{hash}");
    }
}

#[test]
fn install_puts_the_files_where_they_belong_and_uninstall_removes_them() {
    let destination = TempDir::new();
    let run = |goal: &str| {
        let (mut make, _) = make("install");
        make.arg(goal).arg(format!("DESTDIR={}", destination.0.display())).arg("PREFIX=/usr");
        printed(&mut make);
    };
    run("install");
    let binary = "usr/sbin/socksd";
    let mut texts: Vec<(String, String)> =
        [("man5", "socksd.rules.5"), ("man5", "socksd.users.5"), ("man8", "socksd.8")]
            .map(|(part, page)| (format!("usr/share/man/{part}/{page}"), format!("man/{page}")))
            .into();
    for example in fs::read_dir(root().join("man/examples")).unwrap() {
        let name = example.unwrap().file_name().into_string().unwrap();
        texts.push((
            format!("usr/share/doc/socksd/examples/{name}"),
            format!("man/examples/{name}"),
        ));
    }
    assert!(texts.len() >= 3 + 5);
    let left = [
        "usr",
        "usr/sbin",
        "usr/share",
        "usr/share/doc",
        "usr/share/man",
        "usr/share/man/man5",
        "usr/share/man/man8",
    ];
    let content = content_of(&destination);
    let own = ["usr/share/doc/socksd", "usr/share/doc/socksd/examples"];
    let directories: Vec<&str> = left.into_iter().chain(own).collect();
    assert_eq!(content.len(), directories.len() + 1 + texts.len(), "{content:#?}");
    assert!(directories.iter().all(|directory| content.contains_key(*directory)));
    assert_eq!(content[binary], 0o755);
    let installed = destination.0.join(binary);
    let version = printed(Command::new(&installed).arg("-V"));
    assert_eq!(version, concat!("socksd ", env!("CARGO_PKG_VERSION"), "\n"));
    for (text, source) in texts {
        assert_eq!(content[&text], 0o644, "{text}");
        let installed = fs::read(destination.0.join(text)).unwrap();
        assert_eq!(installed, fs::read(root().join(source)).unwrap());
    }

    // A running server is no obstacle, and keeps running.
    let before = fs::metadata(&installed).unwrap().ino();
    let mut server = Server::spawn(Command::new(&installed).args(["-l", "127.0.0.1:0"]));
    run("install");
    assert_ne!(fs::metadata(&installed).unwrap().ino(), before);
    drop(server.connect());
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));

    run("uninstall");
    assert!(content_of(&destination).into_keys().eq(left.map(str::to_owned)));
}

#[test]
fn the_manual_of_the_users_file_renders_without_a_complaint() {
    let headings = ["NAME", "DESCRIPTION", "EXAMPLES", "SEE ALSO", "SECURITY"];
    assert_renders("socksd.users.5", "SOCKSD.USERS(5)", &headings);
}

#[test]
fn the_manual_of_the_rules_renders_without_a_complaint() {
    let headings =
        ["NAME", "DESCRIPTION", "FILES", "EXAMPLES", "DIAGNOSTICS", "SEE ALSO", "CAVEATS"];
    assert_renders("socksd.rules.5", "SOCKSD.RULES(5)", &headings);
}

#[test]
fn the_manual_renders_without_a_complaint() {
    let headings = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "METRICS",
        "SIGNALS",
        "ENVIRONMENT",
        "FILES",
        "EXIT STATUS",
        "EXAMPLES",
        "DIAGNOSTICS",
        "SEE ALSO",
        "STANDARDS",
        "SECURITY",
        "CAVEATS",
    ];
    assert_renders("socksd.8", "SOCKSD(8)", &headings);
}

/// Asserts that a page has these headings and that nobody finds fault with it.
fn assert_renders(page: &str, title: &str, headings: &[&str]) {
    let manual = root().join("man").join(page);
    let lint = output(Command::new("mandoc").args(["-Tlint", "-Wstyle"]).arg(&manual));
    let lint = String::from_utf8(lint.stdout).unwrap();
    // Whether the pages referred to are installed here says nothing of this one.
    let faults: Vec<&str> =
        lint.lines().filter(|line| !line.contains("referenced manual not found")).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    let mut man = Command::new("man");
    man.args(["--warnings", "-l"]).arg(&manual).env("MANPAGER", "cat").env("LC_ALL", "C.UTF-8");
    let man = output(&mut man);
    assert_eq!(String::from_utf8(man.stderr).unwrap(), "");
    for rendered in [
        printed(Command::new("mandoc").args(["-Tascii"]).arg(&manual)),
        String::from_utf8(man.stdout).unwrap(),
    ] {
        // mandoc sets bold by printing a character over itself.
        let mut plain = String::new();
        for c in rendered.chars() {
            if c == '\u{8}' {
                plain.pop();
            } else {
                plain.push(c)
            }
        }
        let found: Vec<&str> = plain
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
            .filter(|line| !line.starts_with(title))
            .collect();
        assert_eq!(&found[..headings.len()], headings, "{plain}");
    }
}
