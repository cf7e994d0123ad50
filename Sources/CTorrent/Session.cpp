#include "Session.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <thread>

namespace lt = libtorrent;

using ctorrent::explain;
using ctorrent::listen_failure;
using ctorrent::token_of;
using ctorrent::wait_for_port;

void ctorrent::explain(char* message, size_t message_bytes, char const* text) {
    if (message != nullptr && message_bytes > 0)
        std::snprintf(message, message_bytes, "%s", text);
}

/// Opening happens on the network thread.
std::uint16_t ctorrent::wait_for_port(lt::session& session, bool tls) {
    for (int attempt = 0; attempt < 200; ++attempt) {
        if (session.is_listening())
            if (auto const port = tls ? session.ssl_listen_port() : session.listen_port())
                return port;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return 0;
}

std::string ctorrent::listen_failure(lt::session& session) {
    std::vector<lt::alert*> alerts;
    session.pop_alerts(&alerts);
    for (auto* alert : alerts)
        if (auto* failed = lt::alert_cast<lt::listen_failed_alert>(alert)) return failed->message();
    return "the port did not open";
}

namespace {

constexpr int any_port_attempts_max = 5;

/// Runs `body` on a torrent unless its session is stopped. A handle whose torrent has gone throws, which is "unknown".
template <typename Body>
ctorrent_result with_torrent(ctorrent_session* session, std::uint64_t token, Body body) {
    return session->use([&](lt::session& torrents) {
        auto const found = session->handles.find(token);
        if (found == session->handles.end()) return CTORRENT_UNKNOWN_TORRENT;
        try {
            body(torrents, found->second);
        } catch (lt::system_error const&) {
            return CTORRENT_UNKNOWN_TORRENT;
        }
        return CTORRENT_OK;
    });
}

}  // namespace

ctorrent::Running::Running() : event_descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (event_descriptor < 0) throw std::runtime_error("no descriptor for events");
}

ctorrent::Running::~Running() { ::close(event_descriptor); }

void ctorrent::Running::notify() {
    // Called with libtorrent's alert lock held, on any thread: only wake the drainer.
    session->set_alert_notify([this] { wake(); });
}

void ctorrent::Running::wake() const {
    std::uint64_t const one = 1;
    if (::write(event_descriptor, &one, sizeof one) < 0) {
        // Full means that the drainer is awake already.
    }
}

ctorrent_result ctorrent::Running::drain() {
    std::uint64_t count;
    if (::read(event_descriptor, &count, sizeof count) < 0) {
        // Nothing was announced; alerts may be there all the same.
    }
    // Pointers stay valid until the next pop, which only this thread does.
    return use([this](lt::session& torrents) {
        torrents.pop_alerts(&alerts);
        return CTORRENT_OK;
    });
}

ctorrent_result ctorrent_session_create(ctorrent_options const* options, ctorrent_session** session,
                                        char* message, size_t message_bytes) {
    return ctorrent::explained(message, message_bytes, [&] {
        auto created = std::make_unique<ctorrent_session>();
        // Any port is first taken for TCP; somebody may have its number for UDP.
        int const attempts = options->port == 0 ? any_port_attempts_max : 1;
        for (int attempt = 0; created->port == 0 && attempt < attempts; ++attempt) {
            // An explicit list of plugins: without ut_pex, ut_metadata and smart_ban.
            lt::session_params parameters(ctorrent::make_settings(*options),
                                          {ctorrent::make_plugin(created->traffic)});
            created->session = std::make_unique<lt::session>(std::move(parameters));
            created->port = wait_for_port(*created->session, options->tls);
        }
        if (created->port == 0) {
            explain(message, message_bytes, listen_failure(*created->session).c_str());
            return CTORRENT_FAILED;
        }
        ctorrent::silence_udp(created->port);
        created->notify();
        *session = created.release();
        return CTORRENT_OK;
    });
}

void ctorrent_session_stop(ctorrent_session* session) {
    session->stop([&] { session->handles.clear(); });
}

void ctorrent_session_free(ctorrent_session* session) {
    delete session;
}

uint16_t ctorrent_session_port(ctorrent_session const* session) { return session->port; }

int ctorrent_session_event_descriptor(ctorrent_session const* session) {
    return session->event_descriptor;
}

void ctorrent_session_wake(ctorrent_session const* session) { session->wake(); }

ctorrent_result ctorrent_session_post_status(ctorrent_session* session) {
    return session->use([](lt::session& torrents) {
        torrents.post_torrent_updates({});
        return CTORRENT_OK;
    });
}

namespace {

/// `d 4:info <info> 12:piece layers d 32:<root> n:<layer> e e`
std::vector<char> torrent_file(ctorrent_torrent const& torrent) {
    std::string text = "d4:info";
    text.append(reinterpret_cast<char const*>(torrent.info), torrent.info_bytes);
    if (torrent.layer_bytes > 0) {
        text += "12:piece layersd32:";
        text.append(reinterpret_cast<char const*>(torrent.root), 32);
        text += std::to_string(torrent.layer_bytes) + ":";
        text.append(reinterpret_cast<char const*>(torrent.layer), torrent.layer_bytes);
        text += "e";
    }
    text += "e";
    return {text.begin(), text.end()};
}

lt::add_torrent_params make_parameters(ctorrent_torrent const& torrent) {
    namespace flags = lt::torrent_flags;
    auto const file = torrent_file(torrent);
    lt::add_torrent_params parameters;
    // One torrent_info per add: libtorrent takes the piece layers out of it.
    parameters.ti = std::make_shared<lt::torrent_info>(
        lt::span<char const>(file.data(), std::ptrdiff_t(file.size())), lt::from_span);
    parameters.save_path = "/";
    parameters.renamed_files[lt::file_index_t{0}] = torrent.path;
    parameters.storage_mode = lt::storage_mode_sparse;
    parameters.flags = flags::apply_ip_filter | flags::disable_dht | flags::disable_lsd
                       | flags::disable_pex | flags::override_trackers
                       | flags::override_web_seeds | flags::no_verify_files
                       | flags::duplicate_is_error | flags::paused;
    parameters.userdata = lt::client_data_t(
        reinterpret_cast<char*>(static_cast<std::uintptr_t>(torrent.token)));
    // Always of full length: a shorter field makes libtorrent hash the whole file.
    int const count = int(torrent.piece_count);
    if (torrent.seed) {
        parameters.flags |= flags::seed_mode;
        parameters.verified_pieces.resize(count, true);
    } else {
        parameters.have_pieces.resize(count, false);
        for (int piece = 0; piece < count; ++piece)
            if (torrent.have[piece / 8] >> (7 - piece % 8) & 1)
                parameters.have_pieces.set_bit(lt::piece_index_t(piece));
        parameters.piece_priorities.assign(std::size_t(count), lt::dont_download);
    }
    return parameters;
}

}  // namespace

ctorrent_result ctorrent_add(ctorrent_session* session, ctorrent_torrent const* torrent,
                             char* message, size_t message_bytes) {
    return ctorrent::explained(message, message_bytes, [&] {
        auto parameters = make_parameters(*torrent);
        return session->use([&](lt::session& torrents) {
            torrents.async_add_torrent(std::move(parameters));
            return CTORRENT_OK;
        });
    });
}

ctorrent_result ctorrent_set_certificate(ctorrent_session* session, uint64_t token,
                                         char const* certificate, char const* key,
                                         char const* dh_parameters) {
    return with_torrent(session, token, [&](lt::session&, lt::torrent_handle& torrent) {
        torrent.set_ssl_certificate_buffer(certificate, key, dh_parameters);
    });
}

ctorrent_result ctorrent_connect(ctorrent_session* session, uint64_t token, char const* address,
                                 uint16_t port) {
    return with_torrent(session, token, [&](lt::session&, lt::torrent_handle& torrent) {
        lt::error_code error;
        auto const parsed = lt::make_address(address, error);
        if (error) return;
        // A source "from a tracker" has its earlier failures forgiven, so it is dialled again.
        torrent.connect_peer({parsed, port}, lt::peer_info::tracker, lt::pex_holepunch);
    });
}

ctorrent_result ctorrent_set_priorities(ctorrent_session* session, uint64_t token,
                                        uint32_t const* pieces, uint8_t const* priorities,
                                        size_t count) {
    return with_torrent(session, token, [&](lt::session&, lt::torrent_handle& torrent) {
        std::vector<std::pair<lt::piece_index_t, lt::download_priority_t>> changes;
        changes.reserve(count);
        for (size_t i = 0; i < count; ++i)
            changes.emplace_back(lt::piece_index_t(int(pieces[i])),
                                 lt::download_priority_t(priorities[i]));
        torrent.prioritize_pieces(changes);
    });
}

ctorrent_result ctorrent_set_sequential(ctorrent_session* session, uint64_t token,
                                        bool sequential) {
    return with_torrent(session, token, [&](lt::session&, lt::torrent_handle& torrent) {
        auto const flag = lt::torrent_flags::sequential_download;
        if (sequential) torrent.set_flags(flag);
        else torrent.unset_flags(flag);
    });
}

ctorrent_result ctorrent_pause(ctorrent_session* session, uint64_t token) {
    return with_torrent(session, token,
                        [](lt::session&, lt::torrent_handle& torrent) { torrent.pause(); });
}

ctorrent_result ctorrent_resume(ctorrent_session* session, uint64_t token) {
    return with_torrent(session, token, [](lt::session&, lt::torrent_handle& torrent) {
        torrent.unset_flags(lt::torrent_flags::upload_mode);
        torrent.clear_error();
        torrent.resume();
    });
}

ctorrent_result ctorrent_flush(ctorrent_session* session, uint64_t token) {
    return with_torrent(session, token,
                        [](lt::session&, lt::torrent_handle& torrent) { torrent.flush_cache(); });
}

ctorrent_result ctorrent_remove(ctorrent_session* session, uint64_t token) {
    return with_torrent(session, token, [](lt::session& torrents, lt::torrent_handle& torrent) {
        torrents.remove_torrent(torrent);
    });
}

ctorrent_result ctorrent_traffic(ctorrent_session* session, uint64_t token,
                                 int64_t* downloaded_bytes, int64_t* uploaded_bytes) {
    try {
        auto const traffic = session->traffic->find(token);
        if (!traffic) return CTORRENT_UNKNOWN_TORRENT;
        *downloaded_bytes = traffic->downloaded.load(std::memory_order_relaxed);
        *uploaded_bytes = traffic->uploaded.load(std::memory_order_relaxed);
        return CTORRENT_OK;
    } catch (...) {
        return CTORRENT_FAILED;
    }
}

ctorrent_result ctorrent_pieces(ctorrent_session* session, uint64_t token, uint8_t* bits,
                                size_t bytes) {
    return with_torrent(session, token, [&](lt::session&, lt::torrent_handle& torrent) {
        auto const status = torrent.status(lt::torrent_handle::query_pieces);
        for (size_t i = 0; i < bytes; ++i) bits[i] = 0;
        int const count = std::min(status.pieces.size(), int(bytes) * 8);
        for (int piece = 0; piece < count; ++piece)
            if (status.pieces[lt::piece_index_t(piece)])
                bits[piece / 8] |= std::uint8_t(0x80 >> piece % 8);
    });
}

namespace {

/// Translates one alert; `remember` learns the handle of a new torrent.
class Drainer {
  public:
    Drainer(ctorrent_session& session, ctorrent_event_body body, void* context)
        : session(session), body(body), context(context) {}

    void take(lt::alert const* alert) {
        switch (alert->type()) {
        case lt::add_torrent_alert::alert_type:
            return added(static_cast<lt::add_torrent_alert const*>(alert));
        case lt::torrent_removed_alert::alert_type:
            return removed(static_cast<lt::torrent_removed_alert const*>(alert));
        case lt::torrent_checked_alert::alert_type: return plain(alert, CTORRENT_EVENT_CHECKED);
        case lt::torrent_resumed_alert::alert_type: return plain(alert, CTORRENT_EVENT_RESUMED);
        case lt::cache_flushed_alert::alert_type: return plain(alert, CTORRENT_EVENT_FLUSHED);
        case lt::hash_failed_alert::alert_type: return plain(alert, CTORRENT_EVENT_HASH_FAILED);
        case lt::piece_finished_alert::alert_type:
            return piece(static_cast<lt::piece_finished_alert const*>(alert));
        case lt::file_error_alert::alert_type:
            return file_error(static_cast<lt::file_error_alert const*>(alert));
        case lt::torrent_error_alert::alert_type:
            return torrent_error(static_cast<lt::torrent_error_alert const*>(alert));
        case lt::state_update_alert::alert_type:
            return status(static_cast<lt::state_update_alert const*>(alert));
        // An interface that came later.
        case lt::listen_succeeded_alert::alert_type: return ctorrent::silence_udp(session.port);
        case lt::alerts_dropped_alert::alert_type: return send(0, CTORRENT_EVENT_DROPPED);
        default: return;
        }
    }

  private:
    ctorrent_session& session;
    ctorrent_event_body body;
    void* context;

    void send(std::uint64_t token, ctorrent_event_kind kind, int error = 0,
              char const* message = "") {
        ctorrent_event event{};
        event.kind = kind;
        event.token = token;
        event.error = error;
        event.message = message;
        body(context, &event);
    }

    void remember(std::uint64_t token, lt::torrent_handle const& handle) {
        std::unique_lock guard(session.lock);
        if (session.session) session.handles.emplace(token, handle);
    }

    void added(lt::add_torrent_alert const* alert) {
        auto const token = alert->error ? token_of(alert->params.userdata)
                                        : token_of(alert->handle.userdata());
        if (token == 0) return;
        if (alert->error)
            return send(token, CTORRENT_EVENT_ADDED, alert->error.value(),
                        alert->error.message().c_str());
        remember(token, alert->handle);
        send(token, CTORRENT_EVENT_ADDED);
    }

    void removed(lt::torrent_removed_alert const* alert) {
        auto const token = token_of(alert->userdata);
        if (token == 0) return;
        {
            std::unique_lock guard(session.lock);
            session.handles.erase(token);
        }
        send(token, CTORRENT_EVENT_REMOVED);
        // Only now: the receiver may have asked for the final figures.
        session.traffic->erase(token);
    }

    void plain(lt::alert const* alert, ctorrent_event_kind kind) {
        auto const& handle = static_cast<lt::torrent_alert const*>(alert)->handle;
        auto const token = token_of(handle.userdata());
        if (token == 0) return;
        // Resume data is applied inside the add, before its own alert is posted.
        if (kind == CTORRENT_EVENT_CHECKED) remember(token, handle);
        send(token, kind);
    }

    void piece(lt::piece_finished_alert const* finished) {
        ctorrent_event event{};
        event.kind = CTORRENT_EVENT_PIECE;
        event.token = token_of(finished->handle.userdata());
        event.piece = std::uint32_t(static_cast<int>(finished->piece_index));
        event.message = "";
        if (event.token != 0) body(context, &event);
    }

    void file_error(lt::file_error_alert const* alert) {
        auto const token = token_of(alert->handle.userdata());
        bool const system = alert->error.category() == boost::system::system_category()
                            || alert->error.category() == boost::system::generic_category();
        if (token != 0)
            send(token, CTORRENT_EVENT_FILE_ERROR, system ? alert->error.value() : -1,
                 alert->error.message().c_str());
    }

    void torrent_error(lt::torrent_error_alert const* alert) {
        auto const token = token_of(alert->handle.userdata());
        if (token != 0)
            send(token, CTORRENT_EVENT_TORRENT_ERROR, alert->error.value(),
                 alert->message().c_str());
    }

    void status(lt::state_update_alert const* alert) {
        for (auto const& status : alert->status) {
            ctorrent_event event{};
            event.kind = CTORRENT_EVENT_STATUS;
            event.token = token_of(status.handle.userdata());
            event.message = "";
            event.download_rate = status.download_payload_rate;
            event.upload_rate = status.upload_payload_rate;
            event.connections = status.num_connections;
            event.peers = status.num_peers;
            if (event.token != 0) body(context, &event);
        }
    }
};

}  // namespace

ctorrent_result ctorrent_session_drain(ctorrent_session* session, ctorrent_event_body body,
                                       void* context) {
    auto const result = session->drain();
    if (result != CTORRENT_OK) return result;
    try {
        Drainer drainer(*session, body, context);
        for (auto* alert : session->alerts) drainer.take(alert);
        return CTORRENT_OK;
    } catch (...) {
        return CTORRENT_FAILED;
    }
}
