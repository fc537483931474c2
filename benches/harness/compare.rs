use clap::Args; #[derive(Args,Debug)] pub struct CompareArgs{} pub fn run(_:&CompareArgs)->Result<bool,String>{Ok(true)}
