//! Settings as TOML text, assembled from the parts that a test cares about.

use super::SECRET;

/// Parts of a configuration file. `Config::default()` is one open route `/ws`.
#[derive(Clone)]
pub struct Config {
    pub workers: u16,
    pub gateway: String,
    pub limits: String,
    pub deadlines: String,
    pub listeners: String,
    pub auths: String,
    pub routes: String,
    pub backends: String,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            workers: 1,
            gateway: String::new(),
            limits: String::new(),
            deadlines: String::new(),
            listeners: "[[listener]]\naddress = \"127.0.0.1:1\"\n".into(),
            auths: String::new(),
            routes: String::new(),
            backends: String::new(),
        }
        .route("/ws", "auth = \"none\"")
    }
}

impl Config {
    /// One open route to this endpoint.
    pub fn to(endpoint: &str) -> Config {
        Config::default().backend(&[endpoint], "")
    }

    /// Without any route yet.
    pub fn bare(endpoint: &str) -> Config {
        Config { routes: String::new(), ..Config::to(endpoint) }
    }

    /// The one backend, `main`.
    pub fn backend(mut self, endpoints: &[&str], more: &str) -> Config {
        self.backends =
            format!("[[backend]]\nname = \"main\"\nendpoints = {endpoints:?}\n{more}\n");
        self
    }

    /// A route that any page and any program may use, unless `more` says otherwise.
    pub fn route(mut self, path: &str, more: &str) -> Config {
        let default = |key: &str, value: &str| match more.contains(&format!("{key} =")) {
            true => String::new(),
            false => format!("{key} = {value}\n"),
        };
        self.routes += &format!("[[route]]\npath = \"{path}\"\nbackend = \"main\"\n{more}\n");
        self.routes += &default("origins", "\"any\"");
        self.routes += &default("origin_absent", "\"allow\"");
        self
    }

    /// An auth with one carrier and a route of the same name.
    pub fn guarded(mut self, name: &str, carrier: &str, more: &str) -> Config {
        self.auths += &format!(
            "[[auth]]\nname = \"{name}\"\nkind = \"jwt\"\ncarriers = [\"{carrier}\"]\n\
             keys = [{{ secret = \"{SECRET}\" }}]\n"
        );
        self.route(&format!("/{name}"), &format!("auth = \"{name}\"\n{more}"))
    }

    /// An auth of a kind that somebody else decides, with these carriers, and a route of the
    /// same name.
    pub fn asking(mut self, name: &str, kind: &str, carriers: &[&str], more: &str) -> Config {
        self.auths += &format!(
            "[[auth]]\nname = \"{name}\"\nkind = \"{kind}\"\ncarriers = {carriers:?}\n{more}\n"
        );
        let closed = match carriers.iter().any(|carrier| carrier.starts_with("cookie")) {
            true => "origins = [\"https://app.example\"]\n",
            false => "",
        };
        self.route(&format!("/{name}"), &format!("auth = \"{name}\"\n{closed}"))
    }

    pub fn workers(mut self, workers: u16) -> Config {
        self.workers = workers;
        self
    }

    pub fn limits(mut self, lines: &str) -> Config {
        self.limits += lines;
        self.limits += "\n";
        self
    }

    pub fn deadlines(mut self, lines: &str) -> Config {
        self.deadlines += lines;
        self.deadlines += "\n";
        self
    }

    /// The listeners and the admin listener on these ports of loopback, the admin socket beside
    /// the file.
    pub fn ports(mut self, listener: u16, admin: u16) -> Config {
        self.listeners =
            self.listeners.replace("127.0.0.1:1\"", &format!("127.0.0.1:{listener}\""));
        self.gateway += &format!("admin = \"127.0.0.1:{admin}\"\nadmin_socket = \"admin.sock\"\n");
        self
    }

    /// The whole file.
    pub fn text(&self) -> String {
        let Config { workers, gateway, limits, deadlines, .. } = self;
        let Config { listeners, auths, routes, backends, .. } = self;
        let buffers = match limits.contains("client_buffers") {
            true => "",
            false => "client_buffers = 256\n",
        };
        let retry = match deadlines.contains("link_retry_max") {
            true => "",
            false => "link_retry_min = \"20ms\"\nlink_retry_max = \"100ms\"\n",
        };
        // A WebSocket server gets cookies, and asks for a closed list.
        let any = "origins = \"any\"";
        let routes =
            match backends.contains("kind = \"websocket\"") && !routes.contains("cookies =") {
                true => routes.replace(any, "origins = [\"https://app.example\"]"),
                false => routes.clone(),
            };
        format!(
            "[gateway]\nworkers = {workers}\n{gateway}\n[limits]\naccepts = 16\n{buffers}{limits}\n\
             [deadlines]\n{retry}{deadlines}\n{listeners}\n{auths}\n{routes}\n{backends}\n"
        )
    }
}
