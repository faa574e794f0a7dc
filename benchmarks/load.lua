-- The load of one wrk run: posts prepared bodies, checks sampled answers, writes one JSON report.
--
-- Arguments: file of bodies (lines "class<TAB>body", where "@path" is a file that holds the body), Lua pattern of the
-- answer's class ("" checks nothing), report file, responses after which a thread stops (0: at the end of the
-- duration), prefix of the marker files ("from" is made as the first thread begins, and one of each thread's number as
-- it stops), content type.
-- A thread posts digits of one class only, so that each answer it sees must name that class: wrk does not tell
-- which request an answer belongs to.

local CHECK_EVERY = 16
local threads = {}

function setup(thread)
   thread:set("number", #threads)
   threads[#threads + 1] = thread
end

local function mark(name)
   io.open(marker .. name, "w"):close()
end

function init(args)
   pattern, report_path, marker = args[2], args[3], args[5] or ""
   stop_after = tonumber(args[4] or "0")
   responses, not_2xx, checked, wrong = 0, 0, 0, 0
   local classes, by_class = {}, {}
   for line in io.lines(args[1]) do
      local class, body = line:match("^(%d+)\t(.*)$")
      if body:sub(1, 1) == "@" then
         local file = assert(io.open(body:sub(2), "rb"))
         body = file:read("*a")
         file:close()
      end
      if not by_class[class] then
         by_class[class] = {}
         classes[#classes + 1] = class
      end
      table.insert(by_class[class], body)
   end
   expected = classes[number % #classes + 1]
   requests = {}
   for index, body in ipairs(by_class[expected]) do
      requests[index] = wrk.format("POST", nil, { ["Content-Type"] = args[6] or "application/json" }, body)
   end
   expected = tonumber(expected)
   turn = 0
   if number == 0 then mark("from") end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

-- A list of scores names the class of its largest one.
local function class_of(found)
   if not found or not found:find(",") then return tonumber(found) end
   local best, best_score, index = nil, -math.huge, 0
   for score in found:gmatch("[^,%s%[%]]+") do
      if tonumber(score) > best_score then best, best_score = index, tonumber(score) end
      index = index + 1
   end
   return best
end

function response(status, headers, body)
   responses = responses + 1
   if status < 200 or status > 299 then
      not_2xx = not_2xx + 1
   elseif pattern ~= "" and responses % CHECK_EVERY == 1 then
      checked = checked + 1
      if class_of(body:match(pattern)) ~= expected then wrong = wrong + 1 end
   end
   if responses == stop_after then
      mark(number)
      wrk.thread:stop()
   end
end

local function sum(name)
   local total = 0
   for _, thread in ipairs(threads) do total = total + (thread:get(name) or 0) end
   return total
end

function done(summary, latency, _)
   local percentiles = {}
   for _, p in ipairs({ 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9 }) do
      percentiles[#percentiles + 1] = string.format('"%g":%d', p, latency:percentile(p))
   end
   local errors = summary.errors
   local report = io.open(threads[1]:get("report_path"), "w")
   report:write(string.format(
      '{"duration_us":%d,"requests":%d,"socket_errors":%d,"timeouts":%d,"not_2xx":%d,"checked":%d,"wrong":%d,'
         .. '"latency_us":{%s}}\n',
      summary.duration, summary.requests, errors.connect + errors.read + errors.write, errors.timeout,
      sum("not_2xx"), sum("checked"), sum("wrong"), table.concat(percentiles, ",")))
   report:close()
end
