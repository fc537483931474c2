use clap::Args; #[derive(Args,Debug)] pub struct FloodArgs{} pub fn run(_:&FloodArgs)->Result<bool,String>{Ok(true)}
