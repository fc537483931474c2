//! L4: one core's world.

pub mod mailbox;
