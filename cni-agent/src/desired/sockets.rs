//! The programs that give sockets their Services.

/// A program at the root of the node's cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketProgram {
    Recvmsg4,
    Recvmsg6,
    Peername4,
    Peername6,
    Connect4,
    Connect6,
    Sendmsg4,
    Sendmsg6,
}

impl SocketProgram {
    /// In the order in which they are attached. Those that exchange a peer come last: whoever is sent elsewhere is shown
    /// whom it dialled.
    pub const ALL: [Self; 8] = [
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Peername4,
        Self::Peername6,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
    ];

    /// The name in the object file and in the pin's path.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Recvmsg4 => "sock_recvmsg4",
            Self::Recvmsg6 => "sock_recvmsg6",
            Self::Peername4 => "sock_peername4",
            Self::Peername6 => "sock_peername6",
            Self::Connect4 => "sock_connect4",
            Self::Connect6 => "sock_connect6",
            Self::Sendmsg4 => "sock_sendmsg4",
            Self::Sendmsg6 => "sock_sendmsg6",
        }
    }
}

/// Which of them are attached: all or none are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketPrograms {
    #[default]
    Absent,
    /// Not all, or not those that this process has loaded, or elsewhere.
    Partial,
    Current,
}
