use super::{
    args::{HandlerArgs, PolicyArgs, StoreArgs},
    exit::{Exit, Failure},
};
use clap::Args;
/// run
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    handler: HandlerArgs,
}
pub(super) async fn run(_args: RunArgs) -> Result<Exit, Failure> {
    Ok(Exit::Ok)
}
