-- Closed-loop load for wrk: each connection asks again as soon as it is answered, bodies in turn.
--
-- Argument behind `--`: bodies (one a line). The summary, a JSON object, goes to the file that the environment's
-- TRUNKLINE_SUMMARY names.
local requests, number, n_requests = {}, 0, 0

function init(args)
   wrk.headers["Content-Type"] = "application/json"
   for body in io.lines(args[1]) do
      n_requests = n_requests + 1
      requests[n_requests] = wrk.format("POST", nil, nil, body)
   end
end

function request()
   number = number % n_requests + 1
   return requests[number]
end

function done(summary, latency)
   local errors = summary.errors
   local file = io.open(os.getenv("TRUNKLINE_SUMMARY"), "w")
   file:write(string.format(
      '{"requests": %d, "seconds": %.6f, "not_2xx": %d, "unanswered": %d, "p50_ms": %.3f, "p99_ms": %.3f}',
      summary.requests, summary.duration / 1e6, errors.status,
      errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
   file:close()
end
