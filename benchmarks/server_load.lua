-- Open-loop load for wrk: every request has a moment at which it is due, fixed beforehand; how long answers take
-- changes nothing about it. One thread (-t1), because each thread of wrk has a Lua state of its own.
--
-- Arguments behind `--`: arrivals (lines "MICROSECONDS BODY", ascending), bodies (one a line), results.
-- A result is a line "INDEX STATUS DUE SENT ANSWERED RETRY_AFTER", moments in microseconds since the start.
local ffi = require("ffi")
ffi.cdef [[
typedef struct { long seconds; long nanoseconds; } moment_t;
int clock_gettime(int clock, moment_t *moment);
]]

local MONOTONIC = 1
local LEAD_US = 500000 -- until all connections are open
local NEVER_MS = 1000000000
local moment = ffi.new("moment_t")
local due, body_of, sent_at, heads, tails = {}, {}, {}, {}, {}
local n_arrivals, n_planned, n_sent = 0, 0, 0
local start, results

local function now()
   ffi.C.clock_gettime(MONOTONIC, moment)
   return tonumber(moment.seconds) * 1000000 + math.floor(tonumber(moment.nanoseconds) / 1000)
end

function init(args)
   for line in io.lines(args[1]) do
      local at, body = line:match("(%d+) (%d+)")
      n_arrivals = n_arrivals + 1
      due[n_arrivals], body_of[n_arrivals] = tonumber(at), tonumber(body)
   end
   local number = 0
   wrk.headers["Content-Type"] = "application/json"
   wrk.headers["X-Request-Id"] = "@"
   for body in io.lines(args[2]) do
      local whole = wrk.format("POST", nil, nil, body)
      local first, last = whole:find("X-Request-Id: @", 1, true)
      heads[number], tails[number] = whole:sub(1, last - 1), whole:sub(last + 1)
      number = number + 1
   end
   results = io.open(args[3], "w")
   results:setvbuf("full", 1048576) -- written out when wrk ends
end

-- Called for each connection that is free: in how many milliseconds it shall send.
function delay()
   start = start or now() + LEAD_US
   n_planned = n_planned + 1
   if n_planned > n_arrivals then
      return NEVER_MS
   end
   return math.max(0, math.ceil((start + due[n_planned] - now()) / 1000))
end

-- Called by whichever connection is due now; the next arrival is its.
function request()
   if not start then -- wrk looks at one request before it begins
      return heads[0] .. "0" .. tails[0]
   end
   n_sent = n_sent + 1
   local body = body_of[n_sent] or 0
   sent_at[n_sent] = now() - start
   return heads[body] .. n_sent .. "." .. (due[n_sent] or 0) .. tails[body]
end

function response(status, headers)
   local at = now() - start
   local index = tonumber((headers["x-request-id"] or headers["X-Request-Id"] or ""):match("^(%d+)%."))
   if index then
      results:write(index, " ", status, " ", due[index], " ", sent_at[index], " ", at, " ",
         headers["retry-after"] or "-", "\n")
   end
end
