//! The verbs.

mod add;
mod check;
mod del;
mod gc;
mod status;
mod version;

use crate::{fault, ipam::Delegate, kernel::host};
use add::Added;
use cni_plugin::{
    CniError, SpecVersion, code,
    config::{Config, Ipam},
    environment::{Environment, Verb},
    rpc::Client,
};
use serde_json::Value;
use std::time::Duration;

/// An error with the version to report it in.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) version: SpecVersion,
    pub(crate) error: CniError,
}

impl From<CniError> for Failure {
    fn from(error: CniError) -> Self {
        Self {
            version: SpecVersion::NEWEST,
            error,
        }
    }
}

/// What to print.
pub(crate) enum Answer {
    Nothing,
    Known(Value),
    /// And what to do when that is printed.
    Added(Box<Added>),
}

/// One call with its configuration.
pub(crate) struct Call<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) config: Config,
    pub(crate) stdin: &'a [u8],
}

impl<'a> Call<'a> {
    fn agent(&self, most: Duration) -> Result<Client, CniError> {
        Client::connect(&self.config.agent_socket, self.config.timeout(most))
    }

    fn delegate<'b>(&'b self, ipam: &'b Option<Ipam>) -> Result<Option<Delegate<'b>>, CniError> {
        ipam.as_ref()
            .map(|ipam| Delegate::find(ipam, &self.environment.path, self.stdin))
            .transpose()
    }

    /// Removes the pair, wherever its other end is. It is no error if there is none.
    fn remove_pair(&self, host_ifname: &str) -> Result<(), CniError> {
        // A bad key keeps nobody from being removed; ADD refuses it.
        let expedited = self.config.expedite().ok().and_then(|expedite| expedite.begin());
        if expedited.is_some() {
            fault::at("expedited")?;
        }
        host::remove_pair(host_ifname)
    }

    /// The error for a verb that the configuration's version does not have yet.
    fn needs(&self, least: SpecVersion) -> Result<(), CniError> {
        match self.config.version >= least {
            true => Ok(()),
            false => Err(CniError::new(
                code::INCOMPATIBLE_VERSION,
                format!(
                    "{} needs cniVersion {least} or newer",
                    self.environment.verb.name()
                ),
            )
            .with_details(format!("the network configuration says {}", self.config.version))),
        }
    }
}

/// Carries a call out.
pub(crate) fn run(environment: &Environment, stdin: &[u8]) -> Result<Answer, Failure> {
    if environment.verb == Verb::Version {
        return Ok(Answer::Known(version::run(stdin)));
    }
    let config = Config::parse(stdin)?;
    crate::log::start(config.log_level());
    let version = config.version;
    let call = Call {
        environment,
        config,
        stdin,
    };
    let outcome = match &environment.verb {
        Verb::Add { attachment, netns } => add::run(&call, attachment, netns)
            .map(Box::new)
            .map(Answer::Added),
        Verb::Check { attachment, netns } => check::run(&call, attachment, netns).map(|()| Answer::Nothing),
        Verb::Del { attachment } => del::run(&call, attachment).map(|()| Answer::Nothing),
        Verb::Gc => gc::run(&call).map(|()| Answer::Nothing),
        Verb::Status => status::run(&call).map(|()| Answer::Nothing),
        Verb::Version => Ok(Answer::Nothing),
    };
    outcome.map_err(|error| Failure { version, error })
}

/// One error for what a clean-up could not do; it has done all the rest.
fn summary(problems: Vec<CniError>) -> Result<(), CniError> {
    let mut problems = problems.into_iter();
    match (problems.next(), problems.len()) {
        (None, _) => Ok(()),
        (Some(only), 0) => Err(only),
        (Some(first), _) => {
            let details: Vec<String> = std::iter::once(first)
                .chain(problems)
                .map(|error| error.to_string())
                .collect();
            Err(
                CniError::new(code::INCOMPLETE_CLEANUP, "parts of the clean-up failed")
                    .with_details(details.join("; ")),
            )
        }
    }
}
