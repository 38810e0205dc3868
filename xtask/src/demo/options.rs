//! What the command line of `demo` says, and the four ports.

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The command line of `demo`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Stop after the answer.
    pub(super) once: bool,
    /// Where the processes listen.
    pub(super) ports: Ports,
    /// The binary to start; none: build it.
    pub(super) runtime: Option<PathBuf>,
}

/// Where the processes listen, on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) link: u16,
    pub(super) receiver_http: u16,
    pub(super) sender_http: u16,
    pub(super) frontend: u16,
}

impl Options {
    /// Reads what follows `demo`.
    ///
    /// # Errors
    /// One sentence that names the argument.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        Self::parse_with(arguments, |name| env::var(name).ok())
    }

    fn parse_with(arguments: &[String], variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut once = false;
        let mut base = None;
        let mut runtime = None;
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| rest.next().cloned())
                    .with_context(|| format!("{name} needs a value"))
            };
            match name {
                "--once" => once = true,
                "--port-base" => base = Some(port_base(&value()?)?),
                "--runtime" => runtime = Some(PathBuf::from(value()?)),
                _ => bail!("demo knows no `{argument}`; see `cargo xtask --help`"),
            }
        }
        let ports = match base {
            Some(base) => Ports::from_base(base),
            None => Ports::usual(variable)?,
        };
        Ok(Self { once, ports, runtime })
    }
}

fn port_base(text: &str) -> Result<u16> {
    match text.parse() {
        Ok(base @ 1..=65532) => Ok(base),
        _ => bail!("--port-base must be a number from 1 to 65532, got `{text}`"),
    }
}

impl Ports {
    fn from_base(base: u16) -> Self {
        Self { link: base, receiver_http: base + 1, sender_http: base + 2, frontend: base + 3 }
    }

    /// The runtime's defaults, or what its variables say where one variable suits both processes.
    fn usual(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let port = |name: &str, usual: u16| match variable(name) {
            None => Ok(usual),
            Some(text) => match text.trim().parse() {
                Ok(port @ 1..) => Ok(port),
                _ => bail!("{name} must be a port from 1 to 65535 for the demo, got `{text}`"),
            },
        };
        Ok(Self {
            link: port("BATON_LINK__PORT", 55555)?,
            receiver_http: 8200,
            sender_http: 8100,
            frontend: port("BATON_FRONTEND__PORT", 9000)?,
        })
    }

    /// Refuses ports on which somebody listens, before minutes are spent on a build.
    pub(super) fn require_free(self) -> Result<()> {
        for (port, what) in [
            (self.link, "link"),
            (self.receiver_http, "receiver's HTTP"),
            (self.sender_http, "sender's HTTP"),
            (self.frontend, "frontend"),
        ] {
            if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                bail!(
                    "cannot use port {port} ({what}): {error}; stop what listens there or choose others with --port-base N"
                );
            }
        }
        Ok(())
    }

    /// The flags that give a receiver its ports.
    pub(super) fn of_receiver(self) -> Vec<String> {
        vec![
            format!("--set=link.port={}", self.link),
            format!("--set=http.port={}", self.receiver_http),
            format!("--set=frontend.port={}", self.frontend),
        ]
    }

    /// The flags that give a sender its ports.
    pub(super) fn of_sender(self) -> Vec<String> {
        vec![format!("--set=link.port={}", self.link), format!("--set=http.port={}", self.sender_http)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, variables: &[(&str, &str)]) -> Result<Options> {
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse_with(&arguments, |name| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_command_line_is_read() {
        let usual = Ports { link: 55555, receiver_http: 8200, sender_http: 8100, frontend: 9000 };
        let based = Ports { link: 7000, receiver_http: 7001, sender_http: 7002, frontend: 7003 };
        for (line, once, ports, runtime) in [
            ("", false, usual, None),
            ("--once", true, usual, None),
            ("--port-base 7000 --once", true, based, None),
            ("--port-base=7000 --runtime /bin/r", false, based, Some("/bin/r")),
        ] {
            let expect = Options { once, ports, runtime: runtime.map(PathBuf::from) };
            assert_eq!(parse(line, &[]).unwrap(), expect, "{line}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_refused() {
        for (line, words) in [
            ("--port-base", "--port-base needs a value"),
            ("--port-base x", "got `x`"),
            ("--port-base 65533", "1 to 65532"),
            ("--twice", "no `--twice`"),
        ] {
            let error = parse(line, &[]).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn the_variables_of_the_runtime_count_unless_a_base_is_given() {
        let variables = [("BATON_LINK__PORT", "1234"), ("BATON_FRONTEND__PORT", "4321")];
        let ports = parse("", &variables).unwrap().ports;
        assert_eq!((ports.link, ports.frontend), (1234, 4321));
        assert_eq!(parse("--port-base 10", &variables).unwrap().ports, Ports::from_base(10));
        assert!(parse("", &[("BATON_LINK__PORT", "0")]).is_err());
    }

    #[test]
    fn a_port_in_use_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ports = Ports { frontend: port, link: 0, receiver_http: 0, sender_http: 0 };
        let error = ports.require_free().unwrap_err().to_string();
        assert!(error.contains(&format!("port {port} (frontend)")), "{error}");
    }
}
