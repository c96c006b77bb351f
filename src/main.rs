//! From argv to an action and its exit status. All the work is in the library.

use std::io::{self, Write as _};
use std::process::ExitCode;

use socksd::cli::{self, Action};
use socksd::hash;
use socksd::log::syslog::Facility;
use socksd::log::{Format, Level, Log};
use socksd::server::inherit;
use socksd::start::{self, StartError};

/// The request that `--explain` asks about is denied.
const EXIT_DENIED: u8 = 1;
/// Wrong usage or configuration: another start will not help.
const EXIT_USAGE: u8 = 100;
/// A system call failed: another start may help.
const EXIT_SYSTEM: u8 = 111;

fn main() -> ExitCode {
    // Under inetd standard error may be the client, which must get nothing but SOCKS.
    let hidden = inherit::hide_stderr().unwrap_or(true);
    let complain = |text: &str| {
        if hidden {
            let log = Log::to_syslog(Level::Quiet, Format::Text, Facility::default());
            log.write(Level::Quiet, log.line("error").text("error", text.trim_end()));
        } else {
            // A closed standard output or standard error is no reason to fail.
            let _ = write!(io::stderr(), "{text}");
        }
    };
    // Reports the error of a result, and gives its exit status.
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
            status(start::run(*config))
        }
        Ok(Action::Check(config)) => status(config.check().map(|warnings| {
            warnings.iter().for_each(|warning| complain(&format!("socksd: {warning}\n")));
        })),
        Ok(Action::Explain(source, query)) => match source.explain(&query) {
            Ok(explanation) => {
                let _ = write!(io::stdout(), "{}", explanation.text);
                if explanation.allowed { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DENIED) }
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

/// Reads a password and prints its hash. A hash that cannot be printed is lost, so that is an
/// error.
fn print_hash() -> Result<(), StartError> {
    let hash = hash::run()?;
    writeln!(io::stdout(), "{hash}").map_err(|error| StartError::system("print the hash", &error))
}
