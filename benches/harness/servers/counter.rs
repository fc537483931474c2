//! The gateway's backend in the fan-in: it swallows messages and answers each batch with their
//! number, as the echo servers do on /count.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use portcullis::backend::{
    Backend, Ended, Handler, Identity, MessageRef, SessionHandle, SessionId,
};

use crate::kernel;

/// Options of `count-backend`.
#[derive(Args, Debug)]
pub struct CountBackendArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS")]
    pub listen: String,
    /// Messages to an answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    pub batch: u64,
}

struct Counter {
    batch: u64,
    messages: HashMap<SessionId, u64>,
}

impl Handler for Counter {
    fn open(&mut self, session: &mut SessionHandle<'_>, _: &Identity) {
        self.messages.insert(session.id(), 0);
    }

    fn message(&mut self, session: &mut SessionHandle<'_>, _: MessageRef<'_>) {
        let messages = self.messages.entry(session.id()).or_default();
        *messages += 1;
        if messages.is_multiple_of(self.batch) {
            session.send(MessageRef::Binary(&messages.to_be_bytes()));
        }
    }

    fn closed(&mut self, session: SessionId, _: &Ended) {
        self.messages.remove(&session);
    }
}

/// Serves until interrupted.
///
/// # Errors
/// When it cannot listen.
pub fn run(args: &CountBackendArgs) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let batch = args.batch;
    runtime.block_on(async {
        let backend = Backend::bind(&args.listen).await.map_err(|error| error.to_string())?;
        let serve = backend.serve(|| Counter { batch, messages: HashMap::new() });
        let interrupted = async {
            while !kernel::interrupted() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = serve => {}
            () = interrupted => {}
        }
        Ok(())
    })
}
