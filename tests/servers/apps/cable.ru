# A Rails application with Action Cable as its guide has it, served by puma.
#
# The connection identifies its user by the token in the cookie `token` or the query, and rejects
# others, after the 101, as Rails does. Its one channel, EchoChannel, answers with the text that it received;
# with `room: "closed"` it rejects the subscription. Actions (see control.js): close?code= (with
# a bare code), remote?user= (Rails' remote disconnect), restart (all connections, as a
# reload of the code does), broadcast?text=, sockets.

require "action_controller/railtie"
require "action_cable/engine"
require "json"
require "openssl"

module Log
  LOCK = Mutex.new
  ALL = []

  def self.add(what, **details)
    LOCK.synchronize { ALL << { what: what, at: (Time.now.to_f * 1000).to_i, **details } }
  end

  def self.all = LOCK.synchronize { ALL.dup }
  def self.clear = LOCK.synchronize { ALL.clear }
end

module Token
  # The token's subject, or nil.
  def self.subject(token)
    signed, _, signature = token.to_s.rpartition(".")
    digest = OpenSSL::HMAC.digest("sha256", ENV.fetch("TOKEN_SECRET"), signed)
    return nil unless [digest].pack("m0").tr("+/", "-_").delete("=") == signature
    claims = JSON.parse(signed.split(".")[1].tr("-_", "+/").unpack1("m"))
    claims["exp"] > Time.now.to_f ? claims["sub"] : nil
  rescue JSON::ParserError
    nil
  end
end

class Application < Rails::Application
  config.load_defaults 6.1
  config.root = __dir__
  config.eager_load = false
  config.secret_key_base = "only for the tests " * 4
  config.logger = Logger.new($stdout)
  config.log_level = :warn
  config.hosts.clear
  config.action_cable.mount_path = "/cable"
  config.action_cable.cable = { "adapter" => "async" }
  # Rails' default, and one page more.
  config.action_cable.allow_same_origin_as_host = true
  config.action_cable.allowed_request_origins = ["https://app.example.com"]
end

module ApplicationCable
  class Connection < ActionCable::Connection::Base
    identified_by :user

    def connect
      headers = env.filter_map { |key, value| [key.delete_prefix("HTTP_").tr("_", "-").downcase, value] if key.start_with?("HTTP_") }
      target = env["REQUEST_URI"] || request.fullpath
      Log.add("request", method: "GET", target: target, headers: headers, peer: env["REMOTE_ADDR"])
      self.user = Token.subject(cookies[:token] || request.params["token"])
      Log.add("connect", user: user)
      reject_unauthorized_connection unless user
      Log.add("open", id: object_id, user: user)
    end

    # A bare close, which Rails itself never sends with a code.
    def close_with(code, reason)
      websocket.send(:websocket).close(code, reason)
    end

    def receive(data)
      Log.add("message", id: object_id, text: data[0, 300], size: data.size)
      super
    end

    def on_close(reason, code)
      clean = code != 1006
      Log.add("close", id: object_id, code: code == 1005 ? nil : code, reason: reason) if clean
      Log.add("end", id: object_id, clean: clean)
      super
    end
  end

  class Channel < ActionCable::Channel::Base
  end
end

class EchoChannel < ApplicationCable::Channel
  def subscribed
    return reject if params[:room] == "closed"
    stream_from "everybody"
  end

  def echo(data)
    transmit({ "text" => data["text"] })
  end
end

# What control.js offers in the applications of Node.
class Control
  def initialize(app)
    @app = app
  end

  def call(env)
    name = env["PATH_INFO"][%r{\A/_control/(\w+)\z}, 1]
    return @app.call(env) unless name
    answer = act(name, Rack::Utils.parse_query(env["QUERY_STRING"]))
    [200, { "content-type" => "application/json" }, [JSON.dump(answer)]]
  end

  def act(name, query)
    server = ActionCable.server
    case name
    when "events" then Log.all
    when "clear" then Log.clear && 0
    when "sockets" then server.connections.size
    when "close"
      server.connections.each { |connection| connection.close_with(query["code"].to_i, query["reason"].to_s) }.size
    when "remote"
      server.remote_connections.where(user: query["user"]).disconnect && 0
    when "restart" then server.restart && 0
    when "broadcast" then server.broadcast("everybody", { "text" => query["text"] }) && 0
    end
  end
end

Application.initialize!

use Control
run Application
