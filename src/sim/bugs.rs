//! Bugs planted on purpose, to prove that the checks see them.

/// One planted bug, and where it sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The ring loses every 20th buffer that is given back.
    RingLosesBuffer,
    /// The kernel delivers every 50th piece of input twice.
    KernelRepeatsInput,
    /// The kernel drops the last byte of every 50th send.
    KernelDropsByte,
    /// A backend sends every 20th echo twice.
    BackendDuplicates,
    /// Clients read their third echo as another.
    ClientMisreads,
    /// The kernel delivers the completion of every 50th receive twice.
    CompletionTwice,
    /// The worker's clock stands still for a while now and then, and hides a deadline.
    ClockSticks,
    /// The kernel tells the same address of every client.
    PeersAlike,
    /// The worker gets a larger cap on unauthenticated connections than the checks assume.
    CapIgnored,
    /// The worker is not told of every second revocation.
    RevocationForgotten,
    /// The worker forgets to give a receive buffer back.
    BufferKept,
    /// The worker forgets to release a send slot.
    SlotKept,
    /// The worker does not receive again after it found no buffer.
    RearmForgotten,
    /// The worker forgets to close a descriptor.
    DescriptorKept,
    /// The worker closes a descriptor twice.
    ClosedTwice,
    /// The worker goes on after a short send with a byte that was sent.
    RestOverlaps,
    /// The worker forgets to cancel what it waits for.
    CancelForgotten,
    /// The worker asks for a second receive on a socket that has one.
    ReceivesTwice,
    /// The worker sleeps longer than its next deadline allows.
    Oversleeps,
    /// The worker does not sleep at all.
    NeverSleeps,
    /// The worker refuses with a wrong close code.
    CodeWrong,
    /// The worker swaps two messages to a client.
    MessagesSwapped,
    /// The worker does not tell the backend that a client is gone.
    SessionKept,
    /// The worker does not give credit back to the backend.
    CreditForgotten,
    /// The worker loses a message to the backend.
    MessageLost,
    /// The worker puts a message into another session.
    SessionMixedUp,
    /// The worker opens a session twice.
    OpenedTwice,
    /// The worker sends a client's frame to a WebSocket server before the server's 101.
    FrameTooEarly,
    /// The worker loses a message to a WebSocket server.
    FrameLost,
    /// The worker sends a message to a WebSocket server twice.
    FrameDoubled,
    /// The worker keeps the connection to a WebSocket server when the client has left.
    ServerKept,
}

impl Bug {
    /// Whether it is the worker that is faulty_ring, as seen at the seam of the ring.
    pub fn is_careless(self) -> bool {
        use Bug::*;
        match self {
            RingLosesBuffer | KernelRepeatsInput | KernelDropsByte | BackendDuplicates => false,
            ClientMisreads | CompletionTwice | ClockSticks | PeersAlike | CapIgnored => false,
            RevocationForgotten => false,
            BufferKept | SlotKept | RearmForgotten | DescriptorKept | ClosedTwice => true,
            RestOverlaps | CancelForgotten | ReceivesTwice | Oversleeps | NeverSleeps => true,
            CodeWrong | MessagesSwapped | SessionKept | CreditForgotten | MessageLost => true,
            SessionMixedUp | OpenedTwice => true,
            FrameTooEarly | FrameLost | FrameDoubled | ServerKept => true,
        }
    }
}
