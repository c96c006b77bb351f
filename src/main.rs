//! argv to exit status.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use socksd::cli::{self, Action};
use socksd::config::{Config, PolicySource, StartError, Started};
use socksd::hash;
use socksd::log::syslog::Facility;
use socksd::log::{Format, Level, Line, Log};
use socksd::server::inherit;
use socksd::server::notify::{self, Notify};
use socksd::server::{Ending, Server, signals};
use socksd::session::service::Service;
use socksd::sys;

/// The request that `--explain` asks about is denied.
const EXIT_DENIED: u8 = 1;
/// Wrong usage or configuration: starting again will not help.
const EXIT_USAGE: u8 = 100;
/// A system call failed: starting again may help.
const EXIT_SYSTEM: u8 = 111;

/// What the log says of a panic, after where and why: it is a bug of this program.
const REPORT: &str = "please report it: see 'Reporting a problem' in the README";

fn main() -> ExitCode {
    // Where standard error is a client, nothing is told there.
    let hidden = inherit::hide_stderr().unwrap_or(true);
    let complain = |text: &str| {
        if hidden {
            let log = Log::to_syslog(Level::Quiet, Format::Text, Facility::default());
            log.write(Level::Quiet, Line::new("error").text("error", text.trim_end()));
        } else {
            // Nobody may be reading standard output or error; neither is a reason to fail.
            let _ = write!(io::stderr(), "{text}");
        }
    };
    // The exit status of a result, after telling what went wrong.
    let status = |result: Result<(), StartError>| {
        let Err(error) = result else { return ExitCode::SUCCESS };
        complain(&error.to_string());
        ExitCode::from(match error {
            StartError::Config(_) => EXIT_USAGE,
            StartError::System(_) => EXIT_SYSTEM,
        })
    };
    match cli::parse(std::env::args_os().skip(1)) {
        Ok(Action::Run(mut config)) => {
            if hidden {
                config.hide_stderr();
            }
            status(run(*config))
        }
        Ok(Action::Check(config)) => status(config.check().map(|warnings| {
            warnings.iter().for_each(|warning| complain(&format!("socksd: {warning}\n")));
        })),
        Ok(Action::Explain(source, request)) => match source.explain(&request) {
            Ok((text, allowed)) => {
                let _ = write!(io::stdout(), "{text}");
                if allowed { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DENIED) }
            }
            Err(error) => status(Err(error)),
        },
        Ok(Action::Hash) => status(print_hash()),
        Ok(Action::Print(text)) => {
            let _ = write!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("socksd: {error}\nTry 'socksd --help'.\n"));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Reads a password and prints its hash, which is lost where nobody takes it: a reason to fail.
fn print_hash() -> Result<(), StartError> {
    let hash = hash::run()?;
    writeln!(io::stdout(), "{hash}").map_err(|error| StartError::system("print the hash", &error))
}

/// Starts the server and runs it until a signal ends it.
fn run(config: Config) -> Result<(), StartError> {
    let notify = Notify::from_env()
        .map_err(|error| StartError::system("connect to NOTIFY_SOCKET", &error))?;
    let ready_fd = config.ready_fd.map(sys::take_fd).transpose();
    let ready_fd =
        ready_fd.map_err(|error| StartError::system("use the descriptor of --ready-fd", &error))?;
    signals::block().map_err(|error| StartError::system("block signals", &error))?;
    let asked = config.caps;
    let Started {
        listeners,
        metrics,
        clients,
        limits,
        service,
        caps,
        source,
        landlock,
        warnings,
        walls,
        pid_file: _pid_file,
    } = config.start()?;
    let logging = Arc::clone(&service);
    std::panic::set_hook(Box::new(move |info| {
        let error = format_args!("{info}; {REPORT}");
        logging.log.write(Level::Quiet, Line::new("panic").text("error", error));
    }));
    // Told once all is open: who reads it can count on the server.
    let mut lines = Vec::new();
    let mut tell = |level: Level, line: Line| lines.push((level, line));
    for listener in &listeners {
        tell(Level::Normal, Line::new("listening").field("addr", &listener.place));
    }
    if let Some(listener) = &metrics {
        tell(Level::Normal, Line::new("metrics").field("addr", &listener.place));
    }
    // Of one session each time, that would be more than of the session itself.
    if !listeners.is_empty() {
        let line = Line::new("limits")
            .field("sessions", caps.sessions)
            .field("per-client", caps.per_client)
            .field("half-open", caps.half_open);
        tell(Level::Normal, line);
        if let Some(walls) = walls {
            let line = Line::new("walls");
            let line = walls.iter().fold(line, |line, (name, value)| line.field(name, value));
            tell(Level::Verbose, line);
        }
        tell(Level::Normal, policy_line(Line::new("policy"), &service));
        tell(Level::Normal, Line::new("landlock").field("state", landlock));
    }
    for warning in warnings {
        tell(Level::Quiet, Line::new("warning").text("error", warning));
    }
    if caps.sessions < asked.sessions {
        let line = Line::new("warning").text(
            "error",
            format_args!("too few descriptors for {} sessions: raise ulimit -n", asked.sessions),
        );
        tell(Level::Quiet, line);
    }
    let server = Server::start(listeners, metrics, clients, &service, caps)
        .map_err(|error| StartError::system("start a thread", &error))?;
    lines.into_iter().for_each(|(level, line)| service.log.write(level, line));
    notify.ready();
    if let Some(fd) = ready_fd {
        notify::end_with_newline(fd);
    }
    let reload = || {
        notify.reloading();
        reload(&source, &service);
        notify.ready();
    };
    match server.run(limits, reload, || notify.stopping()) {
        Ending::Signal(_) | Ending::Idle => Ok(()),
        Ending::Broken(error) => Err(StartError::system("accept clients", &error)),
    }
}

/// Tells how much there is to go by.
fn policy_line(line: Line, service: &Service) -> Line {
    let policy = service.policy.get();
    let users = policy.users.as_ref().map_or_else(|| "-".into(), |users| users.len().to_string());
    line.field("rules", policy.len()).field("users", users)
}

/// Opens the log and reads rules and users anew. Where anything is wrong with either, what is in
/// use stays.
fn reload(source: &PolicySource, service: &Service) {
    if let Err(error) = service.log.reopen() {
        service.log.write(Level::Quiet, Line::new("reopen-failed").text("error", error));
    }
    match source.load() {
        Ok(policy) => {
            service.change_policy(policy);
            service.log.write(Level::Normal, policy_line(Line::new("reload"), service));
        }
        Err(StartError::Config(errors)) => {
            for error in errors {
                service.log.write(Level::Quiet, Line::new("reload-failed").text("error", error));
            }
        }
        Err(StartError::System(error)) => {
            service.log.write(Level::Quiet, Line::new("reload-failed").text("error", error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_of_the_readme_that_a_panic_names_is_there() {
        let (_, section) = REPORT.split_once('\'').unwrap();
        let (section, _) = section.split_once('\'').unwrap();
        let readme = include_str!("../README.md");
        assert!(readme.lines().any(|line| line == format!("## {section}")), "{section}");
    }
}
