//! The command line of `demo` and the four ports of a pair.

use std::env;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use anyhow::{Result, bail};

/// The command line of `demo`.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Options {
    /// Start a fleet instead of a pair: two receivers, two senders, two nodes and a proxy. Send it requests, kill a receiver, and show what
    /// happened. The processes find each other in an etcd if the program `etcd` is in PATH, else by lists
    #[arg(long)]
    pub(super) fleet: bool,
    /// Stop after the answer, or the answers of a fleet
    #[arg(long)]
    pub(super) once: bool,
    /// Use the ports N to N+3 instead of 55555, 8200, 8100 and 9000. A fleet uses N to N+12 instead of 55555 to 55558, 8200 to 8203, 8100,
    /// 8101, 9000, 12379 and 12380
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=65523))]
    pub(super) port_base: Option<u16>,
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
        require_free(&[
            (self.link, "link"),
            (self.receiver_http, "receiver's HTTP"),
            (self.sender_http, "sender's HTTP"),
            (self.frontend, "frontend"),
        ])
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

/// Fails if one of these ports is in use.
pub(super) fn require_free(ports: &[(u16, &str)]) -> Result<()> {
    for (port, what) in ports {
        if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, *port)) {
            bail!(
                "cannot use port {port} ({what}): {error}; stop the program that uses it, or choose other ports with --port-base N"
            );
        }
    }
    Ok(())
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

    #[test]
    fn a_fleet_is_asked_for_with_a_flag() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let parse = |line: &str| {
            let words = ["demo"].into_iter().chain(line.split_whitespace());
            <Line as clap::Parser>::try_parse_from(words).map(|line| line.options)
        };
        let flags =
            |line| parse(line).map(|options| (options.fleet, options.once, options.port_base)).unwrap();
        assert_eq!(flags(""), (false, false, None));
        assert_eq!(flags("--once"), (false, true, None));
        assert_eq!(flags("--fleet"), (true, false, None));
        assert_eq!(flags("--once --fleet --port-base 65523"), (true, true, Some(65523)));
        assert!(parse("--fleet --port-base 65524").is_err());
    }
}
