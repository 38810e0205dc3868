//! The command line of `demo` and the four ports.

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::{Result, bail};

/// The command line of `demo`.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Options {
    /// Stop after the answer
    #[arg(long)]
    pub(super) once: bool,
    /// Use the ports N to N+3 instead of 55555, 8200, 8100 and 9000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=65532))]
    port_base: Option<u16>,
    /// Start this binary instead of building one
    #[arg(long, value_name = "PATH")]
    pub(super) runtime: Option<PathBuf>,
}

/// The ports of both processes on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) link: u16,
    pub(super) receiver_http: u16,
    pub(super) sender_http: u16,
    pub(super) frontend: u16,
}

impl Options {
    /// The ports of both processes.
    ///
    /// # Errors
    /// An environment variable of the runtime is not a port.
    pub(super) fn ports(&self) -> Result<Ports> {
        self.ports_with(|name| env::var(name).ok())
    }

    fn ports_with(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Ports> {
        self.port_base.map_or_else(|| Ports::usual(variable), |base| Ok(Ports::from_base(base)))
    }
}

impl Ports {
    fn from_base(base: u16) -> Self {
        Self { link: base, receiver_http: base + 1, sender_http: base + 2, frontend: base + 3 }
    }

    /// The runtime's default ports. The runtime's environment variables set the link port and the frontend port. They do not set the HTTP
    /// ports, because both processes would get the same one.
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

    /// Fails if a port is in use. Called before the build, which takes minutes.
    pub(super) fn require_free(self) -> Result<()> {
        for (port, what) in [
            (self.link, "link"),
            (self.receiver_http, "receiver's HTTP"),
            (self.sender_http, "sender's HTTP"),
            (self.frontend, "frontend"),
        ] {
            if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                bail!(
                    "cannot use port {port} ({what}): {error}; stop the program that uses it, or choose other ports with --port-base N"
                );
            }
        }
        Ok(())
    }

    /// The arguments that set the ports of the receiver.
    pub(super) fn of_receiver(self) -> Vec<String> {
        vec![
            format!("--set=link.port={}", self.link),
            format!("--set=http.port={}", self.receiver_http),
            format!("--set=frontend.port={}", self.frontend),
        ]
    }

    /// The arguments that set the ports of the sender.
    pub(super) fn of_sender(self) -> Vec<String> {
        vec![format!("--set=link.port={}", self.link), format!("--set=http.port={}", self.sender_http)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(port_base: Option<u16>, variables: &[(&str, &str)]) -> Result<Ports> {
        Options { port_base, ..Options::default() }.ports_with(|name| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn ports_are_the_defaults_or_start_at_the_base() {
        let usual = Ports { link: 55555, receiver_http: 8200, sender_http: 8100, frontend: 9000 };
        assert_eq!(ports(None, &[]).unwrap(), usual);
        let based = Ports { link: 7000, receiver_http: 7001, sender_http: 7002, frontend: 7003 };
        assert_eq!(ports(Some(7000), &[]).unwrap(), based);
    }

    #[test]
    fn environment_variables_set_ports_unless_a_base_is_given() {
        let variables = [("BATON_LINK__PORT", "1234"), ("BATON_FRONTEND__PORT", "4321")];
        let found = ports(None, &variables).unwrap();
        assert_eq!((found.link, found.frontend), (1234, 4321));
        assert_eq!(ports(Some(10), &variables).unwrap(), Ports::from_base(10));
        assert!(ports(None, &[("BATON_LINK__PORT", "0")]).is_err());
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
